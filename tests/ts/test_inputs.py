"""Series in any form become the one long form."""

import numpy as np
import pandas as pd
import pytest

from xlstm_ts import xLSTMForecaster
from xlstm_ts.frames import Columns
from xlstm_ts.inputs import to_long

from .conftest import HORIZON, TINY, make_panel

COLUMNS = Columns()


def test_a_long_frame_stays_as_it_is() -> None:
    frame = make_panel({"a": 5})

    assert to_long(frame, COLUMNS) is frame


@pytest.mark.parametrize("in_index", [True, False])
def test_a_wide_frame_has_a_series_in_each_column(in_index: bool) -> None:
    wide = pd.DataFrame({"ds": pd.date_range("2024", periods=4), "a": [1.0, 2, 3, 4], "b": [np.nan, np.nan, 5, 6]})

    long = to_long(wide.set_index("ds") if in_index else wide, COLUMNS)

    assert long["unique_id"].tolist() == ["a"] * 4 + ["b"] * 2
    assert long["y"].tolist() == [1, 2, 3, 4, 5, 6]
    assert long["ds"].iloc[4] == pd.Timestamp("2024-01-03")


@pytest.mark.parametrize("names", [["y"], ["x", "y", "z"]])
def test_a_wide_frame_may_name_a_series_as_long_frames_name_their_values(names: list[str]) -> None:
    wide = pd.DataFrame(1.0, index=pd.date_range("2024", periods=2), columns=names)

    assert to_long(wide, COLUMNS)["unique_id"].unique().tolist() == names


@pytest.mark.parametrize("beside", ["ds", "promotion"])
def test_values_beside_times_or_covariates_are_no_wide_frame(beside: str) -> None:
    frame = pd.DataFrame({beside: [1, 2], "y": [1.0, 2.0]})

    assert to_long(frame, Columns(known=("promotion",))) is frame


def test_a_named_series_is_one_series_of_this_name() -> None:
    index = pd.period_range("2024-01", periods=3, freq="M")

    long = to_long(pd.Series([1.0, 2.0, 3.0], index, name="sales"), COLUMNS)

    assert long["unique_id"].unique().tolist() == ["sales"]
    assert long["ds"].tolist() == index.tolist()


@pytest.mark.parametrize("data", [np.arange(6.0).reshape(2, 3), [[0, 1, 2], [3.0, 4.0, 5.0]]])
def test_an_array_has_a_series_in_each_row(data: object) -> None:
    long = to_long(data, COLUMNS)

    assert long.to_numpy().tolist() == [[0, 0, 0], [0, 1, 1], [0, 2, 2], [1, 0, 3], [1, 1, 4], [1, 2, 5]]


def test_a_flat_array_is_one_series() -> None:
    assert to_long(np.arange(3.0), COLUMNS)["ds"].tolist() == [0, 1, 2]


def test_a_list_may_hold_arrays_of_different_lengths() -> None:
    assert to_long([np.arange(3.0), np.arange(2.0)], COLUMNS)["unique_id"].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("text", TypeError, "got str"),
        (np.zeros((2, 2, 2)), ValueError, r"must be \(T,\) or \(N, T\), got \(2, 2, 2\)"),
        (pd.DataFrame({"a": ["x", "y"]}), ValueError, "column 'a' of a wide frame must be numeric"),
        (pd.DataFrame({"a": [1.0], "b": [np.nan]}), ValueError, "column 'b' of a wide frame holds no value"),
        ([["a", "b"]], ValueError, "series 0 holds values that are no numbers"),
    ],
)
def test_what_holds_no_series_is_refused(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        to_long(data, COLUMNS)


def test_all_forms_of_the_same_values_are_forecast_alike() -> None:
    panel = make_panel({"a": 40, "b": 40}, start=0)
    values = panel["y"].to_numpy().reshape(2, 40)
    wide = pd.DataFrame(values.T, columns=["a", "b"])

    forecasts = [xLSTMForecaster(**TINY).fit(data).predict()["xLSTM"].to_numpy() for data in (panel, wide, values)]

    assert np.array_equal(forecasts[0], forecasts[1])
    assert np.array_equal(forecasts[0], forecasts[2])


@pytest.mark.parametrize("freq", ["h", "D", "M", "Q-DEC"])
def test_periods_are_continued_as_periods(freq: str) -> None:
    index = pd.period_range("2020-01", periods=40, freq=freq)
    forecaster = xLSTMForecaster(**{**TINY, "season_length": None, "max_epochs": 1})

    forecast = forecaster.fit(pd.Series(np.sin(np.arange(40.0)), index)).predict()

    assert forecast["ds"].tolist() == list(pd.period_range(index[-1] + 1, periods=HORIZON, freq=freq))


def test_gaps_are_filled_when_asked_for() -> None:
    frame = make_panel({"a": 40, "b": 30}, "2024-01-01", "D").drop(index=[7, 8, 50])

    forecaster = xLSTMForecaster(**TINY, fill_gaps=True).fit(frame)

    assert np.isnan(forecaster.panel_.values).nonzero()[0].tolist() == [7, 8, 50]
    assert forecaster.predict().notna().all(axis=None)


def test_series_from_one_row_on_are_forecast() -> None:
    frame = pd.concat([make_panel({"long": 40}), make_panel({"one": 1, "two": 2})])
    frame.loc[frame["unique_id"] == "two", "y"] = np.nan

    forecast = xLSTMForecaster(**TINY).fit(frame).predict()

    assert forecast.groupby("unique_id").size().tolist() == [HORIZON] * 3
    assert forecast.notna().all(axis=None)
    np.testing.assert_allclose(forecast.loc[forecast["unique_id"] == "one", "xLSTM"], 10, rtol=0.1)


def test_a_panel_of_single_rows_is_continued_at_its_level() -> None:
    forecast = xLSTMForecaster(**TINY, freq="D").fit(make_panel({"a": 1, "b": 1}, "2024-01-01", "D")).predict()

    np.testing.assert_allclose(forecast["xLSTM"], [10.09] * HORIZON + [20.09] * HORIZON, rtol=0.2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (make_panel({"a": 5}).set_index(["unique_id", "ds"])["y"], r"levels \['unique_id', 'ds'\].*reset_index"),
        (pd.DataFrame(np.ones((3, 2)), columns=pd.MultiIndex.from_product([["a"], [1, 2]])), "columns have 2 levels"),
    ],
)
def test_labels_of_several_levels_are_refused(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_long(data, COLUMNS)


def test_a_wide_frame_may_repeat_a_time_until_it_is_checked() -> None:
    wide = pd.DataFrame({"a": [np.nan, 1.0, 2.0]}, index=[7, 7, 8])

    assert to_long(wide, COLUMNS)["ds"].tolist() == [7, 8]


def test_a_panel_without_a_single_value_is_refused() -> None:
    with pytest.raises(ValueError, match="'y' holds no value, only missing ones"):
        xLSTMForecaster(**TINY).fit(make_panel({"a": 9}).assign(y=np.nan))
