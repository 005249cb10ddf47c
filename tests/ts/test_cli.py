"""The command line trains, forecasts, goes on and draws, and says what is wrong with an exit code."""

import json
from pathlib import Path

import pandas as pd
import pytest

from xlstm_ts import xLSTMForecaster
from xlstm_ts.cli import main

from .conftest import HORIZON, TINY, make_panel

WHOLE = make_panel({"a": 50, "b": 40}, "2024-01-01", "D")
SETTINGS = json.dumps({name: value for name, value in TINY.items() if name not in ("horizon", "random_state")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a trained model, its data and rows that follow."""
    last = WHOLE.groupby("unique_id").cumcount(ascending=False)
    WHOLE[last >= 3].to_csv(tmp_path / "old.csv", index=False)
    WHOLE[last < 3].to_csv(tmp_path / "new.csv", index=False)
    WHOLE.to_csv(tmp_path / "whole.csv", index=False)
    fit = ["fit", tmp_path / "old.csv", "--horizon", HORIZON, "--set", SETTINGS, "--quiet"]
    assert run(*fit, model=tmp_path) == 0
    return tmp_path


def run(*arguments: object, model: Path) -> int:
    return main([*map(str, arguments), "--model", str(model / "model")])


def test_predictions_are_those_of_the_forecaster(folder: Path) -> None:
    assert run("predict", "--level", 50, "--output", folder / "out.csv", model=folder) == 0

    expected = xLSTMForecaster.load(folder / "model").predict(level=[50])
    pd.testing.assert_frame_equal(pd.read_csv(folder / "out.csv", parse_dates=["ds"]), expected, check_dtype=False)


def test_an_update_moves_the_forecast_on(folder: Path, capsys) -> None:
    assert run("update", folder / "new.csv", model=folder) == 0
    capsys.readouterr()

    assert run("predict", model=folder) == 0

    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "unique_id,ds,xLSTM,xLSTM-lo-80,xLSTM-hi-80"
    assert rows[1].startswith("a,2024-02-20")


def test_a_backtest_is_summed_up(folder: Path, capsys) -> None:
    output = folder / "backtest.csv"

    assert run("backtest", folder / "whole.csv", "--windows", 2, "--output", output, model=folder) == 0

    assert len(pd.read_csv(output)) == 2 * 2 * HORIZON
    assert f"{4 * HORIZON} forecasts, mean absolute error" in capsys.readouterr().out


def test_parquet_is_read_and_written(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    WHOLE.to_parquet(folder / "whole.parquet")

    assert run("predict", "--data", folder / "whole.parquet", "--output", folder / "out.parquet", model=folder) == 0

    assert len(pd.read_parquet(folder / "out.parquet")) == 2 * HORIZON


def test_a_plot_is_a_picture(folder: Path) -> None:
    assert run("plot", folder / "whole.csv", "--series", "b", "--output", folder / "b.png", model=folder) == 0

    assert (folder / "b.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_wrong_is_said_with_an_exit_code(folder: Path, capsys) -> None:
    assert run("update", folder / "whole.csv", model=folder) == 1
    assert "xlstm-ts update: the new rows of series 'a' must begin at" in capsys.readouterr().err
    assert run("update", folder / "missing.csv", model=folder) == 1
    assert run("update", folder / "model", model=folder) == 1


def test_wrong_arguments_exit_with_two() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["predict"])
    assert stopped.value.code == 2


def test_a_plot_with_known_covariates_takes_those_ahead(tmp_path: Path) -> None:
    old, new = WHOLE.groupby("unique_id").head(34), WHOLE.groupby("unique_id").head(40).groupby("unique_id").tail(6)
    for name, part in (("old", old), ("new", new)):
        part.assign(price=1.0).to_csv(tmp_path / f"{name}.csv", index=False)
    data = tmp_path / "old.csv"
    fit = ["fit", data, "--horizon", HORIZON, "--known", "price", "--set", SETTINGS, "--quiet"]
    assert run(*fit, model=tmp_path) == 0

    assert run("plot", data, "--output", tmp_path / "a.png", model=tmp_path) == 1
    plot = ["plot", data, "--future", tmp_path / "new.csv", "--output", tmp_path / "a.png"]
    assert run(*plot, model=tmp_path) == 0


def test_a_wide_file_is_drawn(folder: Path) -> None:
    WHOLE.pivot(index="ds", columns="unique_id", values="y").to_csv(folder / "wide.csv")

    assert run("plot", folder / "wide.csv", "--output", folder / "b.png", model=folder) == 0


def test_a_forecast_is_not_written_to_another_kind_of_file(folder: Path, capsys) -> None:
    assert run("predict", "--output", folder / "out.xlsx", model=folder) == 1
    assert "out.xlsx must be a .csv, .csv.gz or .parquet file" in capsys.readouterr().err


def test_times_in_a_way_of_writing_that_is_not_known_are_named(folder: Path, capsys) -> None:
    WHOLE.assign(ds=WHOLE["ds"].dt.strftime("%d/%m/%Y")).to_csv(folder / "european.csv", index=False)

    assert run("predict", "--data", folder / "european.csv", model=folder) == 1
    assert "column 'ds' of" in (said := capsys.readouterr().err)
    assert "write them like 2024-01-31" in said
