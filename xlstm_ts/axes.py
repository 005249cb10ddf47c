"""The time axes of a panel's series: the frequency that they share, where one leaves it, and gaps filled.

Shapes: N series, T rows of all of them, laid end to end.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from xlstm_ts.frequency import Frequency, infer_frequency, likely_frequency, regular_axis, steps_between
from xlstm_ts.labels import shown


@dataclass(frozen=True)
class Axes:
    """Sorted points in time of many series.

    Attributes:
        ids: (N,) name of each series.
        times: (T,) points in time.
        lengths: (N,) points of each series.
        labels: (T,) the rows' labels in their frame.
    """

    ids: np.ndarray
    times: pd.Index
    lengths: np.ndarray
    labels: pd.Index

    def of(self, number: int) -> pd.Series:
        """One series' points in time."""
        stop = int(self.lengths[: number + 1].sum())
        part = slice(stop - int(self.lengths[number]), stop)
        return pd.Series(self.times[part], index=self.labels[part])

    def common_frequency(self) -> Frequency:
        """The frequency of the first series that shows one, at least in a part of it."""
        numbers = range(len(self.ids))
        guesses = (guess(self.of(number)) for guess in (infer_frequency, likely_frequency) for number in numbers)
        known = next((guessed for guessed in guesses if guessed is not None), None)
        if known is None:
            raise ValueError(
                f"the frequency cannot be inferred: series {shown(self.ids[0])} has too few or irregular points in "
                "time: fill its gaps, pass series with at least 3 regular points, or name it with freq"
            )
        return known

    def deviation_message(self, row: int, frequency: Frequency) -> str:
        """What is wrong with the series of the given row, which is not where the frequency puts it."""
        number = int(np.searchsorted(np.cumsum(self.lengths), row, side="right"))
        name, axis = shown(self.ids[number]), self.of(number)
        own = infer_frequency(axis)
        if own is not None and own != frequency:
            return (
                f"series {name} has frequency {own!r} where {frequency!r} is expected: "
                "resample it, or forecast series of different frequencies separately"
            )
        if isinstance(frequency, int) != pd.api.types.is_integer_dtype(axis):
            return f"series {name} has times of dtype {axis.dtype} where the frequency {frequency!r} is expected"
        position = row - int(self.lengths[:number].sum())
        expected = regular_axis(axis.iloc[0], len(axis), frequency)[position]
        return (
            f"series {name} has a gap or leaves the frequency {frequency!r}: expected {expected} after "
            f"{axis.iloc[max(position - 1, 0)]}, got {axis.iloc[position]} (row {shown(axis.index[position])}): "
            "insert the missing rows with NaN values, or pass fill_gaps=True"
        )

    def without_gaps(self, irregular: np.ndarray, frequency: Frequency) -> tuple[pd.Index, np.ndarray, np.ndarray]:
        """All points in time, with those that the ``irregular`` series lack.

        Returns:
            The points, the new lengths (N,), and which of the points are inserted.

        Raises:
            ValueError: a point is where the frequency has none.
        """
        lengths, starts = self.lengths.copy(), np.cumsum(self.lengths) - self.lengths
        times, inserted, done = [], [], 0
        for number in np.unique(irregular):
            start, stop = int(starts[number]), int(starts[number] + self.lengths[number])
            axis = self.times[start:stop]
            whole = self._whole_axis(axis, frequency)
            at = whole.get_indexer(axis)
            if (at < 0).any():
                raise ValueError(self.deviation_message(start + int((at < 0).argmax()), frequency))
            lacking = np.ones(len(whole), dtype=bool)
            lacking[at] = False
            times += [self.times[done:start], whole]
            inserted += [np.zeros(start - done, dtype=bool), lacking]
            lengths[number], done = len(whole), stop
        times.append(self.times[done:])
        inserted.append(np.zeros(len(self.times) - done, dtype=bool))
        return times[0].append(times[1:]), lengths, np.concatenate(inserted)

    @staticmethod
    def _whole_axis(axis: pd.Index, frequency: Frequency) -> pd.Index:
        return regular_axis(axis[0], steps_between(axis[0], axis[-1], frequency) + 1, frequency)
