"""Accuracy measures give the competition's numbers."""

import pandas as pd
import pytest

from xlstm_ts import accuracy, mase, owa, smape


def test_smape_is_zero_for_exact_and_200_for_opposite_forecasts() -> None:
    assert smape([1.0, 0.0], [1.0, 0.0]) == 0
    assert smape([1.0, 2.0], [-1.0, -2.0]) == 200


def test_mase_is_one_where_the_error_is_the_seasonal_naive_one() -> None:
    assert mase([10.0], [7.0], history=[0, 5, 3, 8], season_length=2) == 1


def test_mase_refuses_a_history_without_a_second_season() -> None:
    with pytest.raises(ValueError, match="longer than season_length = 3, got 3"):
        mase([1.0], [1.0], history=[1, 2, 3], season_length=3)


def test_mase_refuses_a_history_that_repeats_exactly() -> None:
    with pytest.raises(ValueError, match="repeats exactly"):
        mase([1.0], [1.0], history=[1, 2, 1, 2], season_length=2)


def test_owa_of_the_published_winner_is_the_published_one() -> None:
    assert owa(9.328, 0.893, naive_smape=18.383, naive_mase=2.395) == pytest.approx(0.440, abs=5e-4)


def test_accuracy_averages_over_series_not_rows() -> None:
    history = pd.DataFrame({"unique_id": list("aaabbb"), "ds": [1, 2, 3] * 2, "y": [0.0, 1.0, 2.0] * 2})
    actual = pd.DataFrame({"unique_id": list("aab"), "ds": [4, 5, 4], "y": [3.0, 3.0, 3.0]})
    forecast = actual.drop(columns="y").assign(model=[3.0, 3.0, 1.0])

    table = accuracy(forecast, actual, history, season_length=1, models=["model"])

    assert table.loc["model"].tolist() == [50.0, 1.0]


def test_an_actual_row_without_a_forecast_is_named() -> None:
    actual = pd.DataFrame({"unique_id": ["a", "a"], "ds": [3, 4], "y": [1.0, 2.0]})
    forecast = actual.iloc[:1].drop(columns="y").assign(model=1.0)

    with pytest.raises(ValueError, match="no forecast for series 'a' at ds = 4"):
        accuracy(forecast, actual, actual, season_length=1, models=["model"])
