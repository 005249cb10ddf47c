"""Time axes: which frequency a series has, whether it keeps it, and how it goes on.

Shapes: N series, T points in time of all of them, laid end to end.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

Frequency: TypeAlias = int | str  # the step of an integer axis, or a pandas alias such as "h" or "MS"

CLOCK_PERIODS = (1, 60, 24 * 60, 7 * 24 * 60)  # minutes
LONGEST_SEASON = 7 * 24 * 12  # a week of five-minute steps
CALENDAR_SEASONS = {"D": 7, "B": 5, "W": 52, "S": 24, "M": 12, "Q": 4, "Y": 1}
HALVES_OF_MONTHS = ("SMS", "SME")  # which pandas does not infer


def is_time(ds: pd.Series) -> bool:
    """Whether a column can be a time axis: integers, timestamps with or without a zone, or periods."""
    return (
        pd.api.types.is_integer_dtype(ds)
        or pd.api.types.is_datetime64_any_dtype(ds)
        or isinstance(ds.dtype, pd.PeriodDtype)
    )


def infer_frequency(ds: pd.Series) -> Frequency | None:
    """The frequency of one sorted time axis, or None where it is irregular or too short to tell.

    >>> infer_frequency(pd.Series(pd.date_range("2020-01-01", periods=5, freq="MS")))
    'MS'
    """
    if pd.api.types.is_integer_dtype(ds):
        steps = np.unique(np.diff(ds.to_numpy()))
        return int(steps[0]) if len(steps) == 1 else None
    if isinstance(ds.dtype, pd.PeriodDtype):
        return str(ds.dtype.freq.freqstr)
    if len(ds) < 3:
        return None
    axis = pd.DatetimeIndex(ds)
    return pd.infer_freq(axis) or next((alias for alias in HALVES_OF_MONTHS if _keeps(axis, alias)), None)


def _keeps(axis: pd.DatetimeIndex, frequency: str) -> bool:
    return bool((pd.date_range(axis[0], periods=len(axis), freq=frequency) == axis).all())


def likely_frequency(ds: pd.Series) -> Frequency | None:
    """The frequency of a sorted time axis with gaps: that of its first half, quarter, ... which has none."""
    own = infer_frequency(ds)
    if own is not None or len(ds) < 4:
        return own
    middle = len(ds) // 2
    return likely_frequency(ds.iloc[:middle]) or likely_frequency(ds.iloc[middle:])


def regular_axis(first: Any, periods: int, frequency: Frequency) -> pd.Index:
    """``periods`` points in time from ``first`` on; shifted where ``first`` is not on the frequency's grid."""
    if isinstance(frequency, int):
        return pd.Index(np.arange(periods) * frequency + first)
    if isinstance(first, pd.Period):
        return pd.period_range(first, periods=periods)
    return pd.date_range(first, periods=periods, freq=frequency)


def deviations(times: pd.Index, lengths: np.ndarray, frequency: Frequency) -> np.ndarray:
    """Which points (T,) of sorted series are not where ``frequency`` puts them, counted from the first of each series.

    >>> deviations(pd.Index([1, 2, 4, 7, 8]), np.array([3, 2]), 1)
    array([False, False,  True, False, False])
    """
    if isinstance(frequency, int) != pd.api.types.is_integer_dtype(times):
        return np.ones(len(times), dtype=bool)
    if isinstance(times, pd.PeriodIndex) and infer_frequency(times[:1].to_series()) != frequency:
        return np.ones(len(times), dtype=bool)
    starts = np.cumsum(lengths) - lengths
    within = np.arange(len(times)) - np.repeat(starts, lengths)
    # Series of a panel tend to begin together: one axis serves all that do.
    begins, firsts = pd.factorize(times[starts])
    longest = np.zeros(len(firsts), dtype=np.int64)
    np.maximum.at(longest, begins, lengths)
    axes = [regular_axis(first, size, frequency) for first, size in zip(firsts, longest.tolist(), strict=True)]
    expected = np.concatenate([ordinals(axis, like=times) for axis in axes])
    return expected[np.repeat((np.cumsum(longest) - longest)[begins], lengths) + within] != ordinals(times)


def ordinals(axis: pd.Index, *, like: pd.Index | None = None) -> np.ndarray:
    """The points of a time axis as integers that compare fast, timestamps in the unit of ``like``."""
    if isinstance(axis, pd.DatetimeIndex):
        return (axis.as_unit(like.unit) if isinstance(like, pd.DatetimeIndex) else axis).asi8
    return axis.asi8 if isinstance(axis, pd.PeriodIndex) else axis.to_numpy(dtype=np.int64)


def steps_between(first: Any, last: Any, frequency: Frequency) -> int:
    """Steps of a frequency from one point in time up to another one.

    >>> steps_between(pd.Timestamp("2024-01-01"), pd.Timestamp("2024-03-01"), "MS")
    2
    """
    if isinstance(frequency, int):
        return int(last - first) // frequency
    if isinstance(first, pd.Period):
        return len(pd.period_range(first, last)) - 1
    return len(pd.date_range(first, last, freq=frequency)) - 1


def future_axis(last: Any, periods: int, frequency: Frequency) -> pd.Index:
    """The ``periods`` points in time after ``last``.

    >>> future_axis(7, 2, 1).tolist()
    [8, 9]
    """
    return regular_axis(last, periods + 1, frequency)[1:]


def next_time(last: Any, frequency: Frequency) -> Any:
    """The point in time after ``last``: the first of ``future_axis``.

    >>> next_time(pd.Timestamp("2024-01-31"), "ME")
    Timestamp('2024-02-29 00:00:00')
    """
    if isinstance(frequency, int):
        return last + frequency
    if isinstance(last, pd.Period):
        return last + 1
    return future_axis(last, 1, frequency)[0]


def next_times(last: Sequence[Any], frequency: Frequency) -> list[Any]:
    """``next_time`` of many, of which most are the same."""
    found = {each: next_time(each, frequency) for each in set(last)}
    return [found[each] for each in last]


def infer_season_lengths(frequency: str) -> tuple[int, ...]:
    """The usual seasons of a frequency in steps, the shortest first: day and week for hourly data, a year for monthly.

    >>> infer_season_lengths("30min"), infer_season_lengths("MS")
    ((48, 336), (12,))
    """
    offset = pd.tseries.frequencies.to_offset(frequency)
    if isinstance(offset, pd.offsets.Tick):
        return _clock_seasons(pd.Timedelta(offset) / pd.Timedelta(minutes=1))
    base = offset.name.split("-")[0].removeprefix("B") or "B"
    year = CALENDAR_SEASONS.get(base[0], 1)
    return (year // offset.n,) if year % offset.n == 0 else (1,)


def _clock_seasons(minutes: float) -> tuple[int, ...]:
    """The two longest of minute, hour, day and week that the step divides; longer seasons would reach too far back."""
    ratios = [period / minutes for period in CLOCK_PERIODS]
    seasons = [int(ratio) for ratio in ratios if ratio.is_integer() and 1 < ratio <= LONGEST_SEASON]
    return tuple(seasons[-2:]) or (1,)
