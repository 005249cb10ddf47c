"""Frequencies of integer and timestamp axes, and the seasons that go with them."""

import numpy as np
import pandas as pd
import pytest

from xlstm_ts.frequency import deviations, future_axis, infer_frequency, infer_season_lengths, next_time, next_times


@pytest.mark.parametrize("freq", ["h", "30min", "D", "B", "W-SUN", "SMS", "SME", "MS", "ME", "YS-JAN"])
def test_the_frequency_of_regular_timestamps_is_inferred(freq: str) -> None:
    assert infer_frequency(pd.Series(pd.date_range("2021-01-01", periods=20, freq=freq))) == freq


def test_the_frequency_of_integers_is_their_step() -> None:
    assert infer_frequency(pd.Series([10, 15, 20])) == 5


def test_an_irregular_axis_has_no_frequency() -> None:
    assert infer_frequency(pd.Series([1, 2, 4])) is None


def test_points_off_the_grid_of_their_series_are_found() -> None:
    dates = pd.to_datetime(["2024-01-01", "2024-02-01", "2024-04-01", "2024-03-01", "2024-04-01"])

    assert deviations(dates, np.array([3, 2]), "MS").tolist() == [False, False, True, False, False]
    assert not deviations(dates[:2], np.array([2]), "MS").any()
    assert deviations(dates[:2], np.array([2]), 1).all()


def test_series_may_run_beyond_what_nanoseconds_count() -> None:
    dates = pd.date_range("2200-01-01", periods=100, freq="YS", unit="us")

    assert not deviations(dates, np.array([60, 40]), "YS-JAN")[:60].any()


@pytest.mark.parametrize(
    ("last", "frequency"),
    [
        (7, 2),
        (pd.Period("2024-02", "3M"), "3M"),
        (pd.Timestamp("2024-01-31"), "ME"),
        (pd.Timestamp("2024-03-30", tz="Europe/Berlin"), "D"),
        (pd.Timestamp("2024-03-31 01:00", tz="Europe/Berlin"), "h"),
    ],
)
def test_the_next_time_is_the_first_of_the_future(last: object, frequency: int | str) -> None:
    expected = future_axis(last, 1, frequency)[0]

    assert next_time(last, frequency) == expected
    assert next_times([last, last], frequency) == [expected, expected]


def test_months_go_on_as_months() -> None:
    assert [str(day.date()) for day in future_axis(pd.Timestamp("2024-01-31"), 2, "ME")] == ["2024-02-29", "2024-03-31"]


def test_time_zones_are_kept() -> None:
    assert str(future_axis(pd.Timestamp("2024-01-31", tz="Europe/Berlin"), 2, "D").tz) == "Europe/Berlin"


@pytest.mark.parametrize(
    ("frequency", "seasons"),
    [
        ("h", (24, 168)),
        ("30min", (48, 336)),
        ("15min", (96, 672)),
        ("min", (60, 1440)),
        ("D", (7,)),
        ("B", (5,)),
        ("SMS", (24,)),
        ("W-SUN", (52,)),
        ("MS", (12,)),
        ("BME", (12,)),
        ("2MS", (6,)),
        ("QS-OCT", (4,)),
        ("YE-DEC", (1,)),
        ("5YS-JAN", (1,)),
    ],
)
def test_usual_seasons_follow_from_the_frequency(frequency: str, seasons: tuple[int, ...]) -> None:
    assert infer_season_lengths(frequency) == seasons
