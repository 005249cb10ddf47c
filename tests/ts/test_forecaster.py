"""The forecaster as its users meet it: frames in, frames out, scikit-learn's contract."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from xlstm_ts import xLSTMForecaster

from .conftest import HORIZON, SEASON, TINY, make_panel


def test_predict_returns_ids_times_median_and_the_default_interval(fitted, panel) -> None:
    forecast = fitted.predict()

    assert list(forecast) == ["unique_id", "ds", "xLSTM", "xLSTM-lo-80", "xLSTM-hi-80"]
    assert len(forecast) == 3 * HORIZON
    assert forecast.notna().all(axis=None)


def test_predict_continues_each_series_from_its_last_timestamp(fitted, panel) -> None:
    first = fitted.predict().groupby("unique_id", sort=False)["ds"].agg(["min", "max"])

    last = panel.groupby("unique_id", sort=False)["ds"].max()
    assert (first["min"] == last + 1).all()
    assert (first["max"] == last + HORIZON).all()


def test_timestamps_continue_at_their_inferred_frequency() -> None:
    forecaster = xLSTMForecaster(**TINY).fit(make_panel({"a": 30, "b": 25}, start="2020-01-31", freq="ME"))

    forecast = forecaster.predict()

    dates = forecast.loc[forecast["unique_id"] == "a", "ds"]
    assert dates.tolist() == pd.date_range("2022-07-31", periods=HORIZON, freq="ME").tolist()


def test_seasons_are_inferred_from_hourly_timestamps() -> None:
    forecaster = xLSTMForecaster(**{**TINY, "season_length": None, "max_epochs": 1, "steps_per_epoch": 1})

    forecaster.fit(make_panel({"a": 60}, start="2024-03-01", freq="h"))

    assert forecaster.season_lengths_ == (24, 168)


def test_seasons_are_found_in_the_values_where_times_are_integers(panel: pd.DataFrame) -> None:
    forecaster = xLSTMForecaster(**{**TINY, "season_length": None, "max_epochs": 1, "steps_per_epoch": 1}).fit(panel)

    assert forecaster.season_lengths_ == (SEASON,)


def test_names_of_the_columns_are_configurable(panel) -> None:
    names = {"unique_id": "shop", "ds": "day", "y": "sales"}
    forecaster = xLSTMForecaster(**TINY, id_col="shop", ds_col="day", y_col="sales").fit(panel.rename(columns=names))

    assert list(forecaster.predict())[:2] == ["shop", "day"]


def test_levels_are_selectable_and_nested(fitted) -> None:
    forecast = fitted.predict(level=[90, 50])

    order = ["xLSTM-lo-90", "xLSTM-lo-50", "xLSTM", "xLSTM-hi-50", "xLSTM-hi-90"]
    assert list(forecast)[2:] == ["xLSTM", "xLSTM-lo-50", "xLSTM-hi-50", "xLSTM-lo-90", "xLSTM-hi-90"]
    assert (np.diff(forecast[order].to_numpy(), axis=1) > 0).all()


def test_new_series_are_forecast_from_their_own_values(fitted) -> None:
    forecast = fitted.predict(make_panel({"new": 31, "newer": 12}, start=100))

    assert forecast["unique_id"].unique().tolist() == ["new", "newer"]
    assert forecast["ds"].iloc[0] == 131


def test_forecasts_do_not_depend_on_batch_mates(fitted, panel) -> None:
    together = fitted.predict(panel)

    for name, rows in panel.groupby("unique_id"):
        alone = fitted.predict(rows)
        pd.testing.assert_frame_equal(alone, together[together["unique_id"] == name].reset_index(drop=True), rtol=1e-5)


def test_the_order_of_rows_does_not_matter(fitted, panel) -> None:
    shuffled = panel.sample(frac=1, random_state=0)

    forecast = fitted.predict(shuffled).sort_values(["unique_id", "ds"], ignore_index=True)

    pd.testing.assert_frame_equal(forecast, fitted.predict(panel).sort_values(["unique_id", "ds"], ignore_index=True))


def test_forecasts_follow_a_change_of_units(fitted, panel) -> None:
    in_units = fitted.predict(panel)["xLSTM"]

    in_thousandths = fitted.predict(panel.assign(y=1000 * panel["y"]))["xLSTM"]

    np.testing.assert_allclose(in_thousandths, 1000 * in_units, rtol=1e-4)


def test_a_constant_series_is_continued_at_its_level(fitted) -> None:
    constant = pd.DataFrame({"unique_id": "flat", "ds": range(30), "y": 7.0})

    np.testing.assert_allclose(fitted.predict(constant)["xLSTM"], 7.0, rtol=1e-4)


@pytest.mark.parametrize("silent", [1, 5, 15, 40])
def test_a_series_that_fell_silent_is_forecast_as_widely_as_it_moved(silent: int) -> None:
    values = np.random.default_rng(0).normal(size=100)
    forecaster = xLSTMForecaster(**{**TINY, "season_length": 1, "val_size": None}).fit(pd.Series(values))

    values[-silent:] = np.nan
    forecast = forecaster.predict(pd.Series(values))

    width = forecast["xLSTM-hi-80"] - forecast["xLSTM-lo-80"]
    assert width.between(1, 6).all()


def test_days_without_a_sale_do_not_promise_more_of_them() -> None:
    sales = np.random.default_rng(0).poisson(0.4, size=150)
    sales[-7:] = 0
    forecaster = xLSTMForecaster(**{**TINY, "season_length": 1, "val_size": None}).fit(pd.Series(sales))

    assert (forecaster.predict()["xLSTM-hi-80"] > 0.5).all()


def test_a_fit_repeats_bit_for_bit_under_random_state(panel, fitted) -> None:
    again = xLSTMForecaster(**TINY).fit(panel)

    pd.testing.assert_frame_equal(again.predict(), fitted.predict(), check_exact=True)


def test_another_random_state_gives_another_fit(panel, fitted) -> None:
    other = xLSTMForecaster(**{**TINY, "random_state": 1}).fit(panel)

    assert not np.allclose(other.predict()["xLSTM"], fitted.predict()["xLSTM"])


def test_fit_leaves_the_global_random_state_alone(panel) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    xLSTMForecaster(**TINY).fit(panel)

    assert torch.equal(torch.rand(3), expected)


def test_clone_copies_parameters_and_nothing_learned(fitted) -> None:
    copy = clone(fitted)

    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.predict()


def test_a_pickled_forecaster_forecasts_the_same(fitted) -> None:
    restored = pickle.loads(pickle.dumps(fitted))

    pd.testing.assert_frame_equal(restored.predict(), fitted.predict(), check_exact=True)


def test_fit_returns_the_forecaster_and_learned_attributes_end_in_an_underscore(panel) -> None:
    forecaster = xLSTMForecaster(**TINY)
    before = set(vars(forecaster))

    assert forecaster.fit(panel) is forecaster
    assert all(name.endswith("_") for name in set(vars(forecaster)) - before)


def test_fit_is_silent_and_leaves_no_files(panel, tmp_path: Path, monkeypatch, capfd, caplog) -> None:
    monkeypatch.chdir(tmp_path)

    xLSTMForecaster(**TINY).fit(panel)

    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_single_series_barely_longer_than_a_season_can_be_fitted() -> None:
    forecaster = xLSTMForecaster(**TINY).fit(make_panel({"a": 5}))

    assert forecaster.predict().notna().all(axis=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon must be an integer >= 1, got 0"),
        ({"horizon": 2.5}, "horizon must be an integer >= 1, got 2.5"),
        ({"season_length": 0}, "season_length must be an integer >= 1, got 0"),
        ({"season_length": (168, 24)}, "ascending"),
        ({"val_size": -1}, "val_size must be an integer >= 0, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0, got 0.0"),
        ({"embedding_dim": 9}, "9"),
    ],
)
def test_a_parameter_out_of_range_is_named_with_its_value(panel, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        xLSTMForecaster(**{**TINY, **change}).fit(panel)


def test_predict_keeps_the_fitted_horizon_when_parameters_change(fitted, panel) -> None:
    changed = pickle.loads(pickle.dumps(fitted)).set_params(horizon=2)

    assert len(changed.predict()) == 3 * HORIZON


def test_predict_names_a_series_of_another_frequency(fitted) -> None:
    daily = make_panel({"daily": 30}, start="2020-01-01", freq="D")

    with pytest.raises(ValueError, match="series 'daily' has frequency 'D' where 1 is expected"):
        fitted.predict(daily)


def test_quantiles_are_columns_that_agree_with_the_intervals(fitted) -> None:
    forecast = fitted.predict(level=[80], quantiles=[0.9, 0.025, 0.5])

    assert list(forecast.columns[-3:]) == ["xLSTM-q-2.5", "xLSTM-q-50", "xLSTM-q-90"]
    np.testing.assert_array_equal(forecast["xLSTM-q-90"], forecast["xLSTM-hi-80"])
    np.testing.assert_array_equal(forecast["xLSTM-q-50"], forecast["xLSTM"])
    assert (forecast["xLSTM-q-2.5"] < forecast["xLSTM-lo-80"]).all()


@pytest.mark.parametrize("quantile", [0, 0.995, 90, float("nan")])
def test_a_quantile_beyond_the_trained_ones_is_refused(fitted, quantile: float) -> None:
    with pytest.raises(ValueError, match=rf"quantiles must be probabilities in \[0.01, 0.99\], got {quantile}"):
        fitted.predict(quantiles=[quantile])


@pytest.mark.parametrize("level", [0, 99, 100])
def test_a_level_that_the_trained_quantiles_do_not_cover_is_refused(fitted, level: float) -> None:
    with pytest.raises(ValueError, match=rf"level must be in \(0, 98\] percent, got {level}"):
        fitted.predict(level=[level])
