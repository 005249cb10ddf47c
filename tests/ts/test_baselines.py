"""Seasonal naive repeats the last season of each series."""

import pytest

from xlstm_ts import seasonal_naive

from .conftest import make_panel


def test_the_last_season_is_repeated_for_each_series() -> None:
    frame = make_panel({"a": 7, "b": 5})

    forecast = seasonal_naive(frame, horizon=3, season_length=2)

    a, b = (frame.loc[frame["unique_id"] == name, "y"].tolist() for name in "ab")
    assert forecast["SeasonalNaive"].tolist() == [a[-2], a[-1], a[-2], b[-2], b[-1], b[-2]]
    assert forecast["ds"].tolist() == [8, 9, 10, 6, 7, 8]


@pytest.mark.parametrize("change", [{"horizon": 0}, {"season_length": 0}])
def test_counts_below_one_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be >= 1, got 0"):
        seasonal_naive(make_panel({"a": 7}), **{"horizon": 1, "season_length": 2, **change})


def test_a_series_shorter_than_a_season_is_named() -> None:
    with pytest.raises(ValueError, match="at least 8 values of every series, got 7 of series 'a'"):
        seasonal_naive(make_panel({"a": 7}), horizon=1, season_length=8)
