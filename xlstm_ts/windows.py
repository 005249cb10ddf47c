"""Vectorised windows over a panel: many series in one flat array, cut by index arithmetic.

Shapes: N series, T values in all, B batch, L window length.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Windows(NamedTuple):
    """A batch of windows.

    Attributes:
        values: (B, L) float64, arbitrary where not seen.
        seen: (B, L) bool, false outside the series.
    """

    values: Tensor
    seen: Tensor


@dataclass(frozen=True)
class SeriesPool:
    """Series laid end to end.

    Attributes:
        values: (T,) float64.
        starts: (N,) int64, where each series begins.
        stops: (N,) int64, one past where each series ends.
    """

    values: Tensor
    starts: Tensor
    stops: Tensor

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> "SeriesPool":
        """A pool of consecutive series.

        >>> SeriesPool.from_lengths(np.arange(5.0), np.array([3, 2])).starts
        tensor([0, 3])
        """
        stops = torch.as_tensor(lengths, dtype=torch.int64).cumsum(0)
        return cls(torch.tensor(values, dtype=torch.float64), stops - torch.as_tensor(lengths), stops)

    def windows(self, series: Tensor, origins: Tensor, *, before: int, after: int = 0) -> Windows:
        """Windows of ``before`` values up to each origin and ``after`` values from it on.

        Args:
            series: (B,) indices of series.
            origins: (B,) positions in ``values``: the first one after what is known at forecasting.
            before: values up to the origin.
            after: values from the origin on.
        """
        positions = origins[:, None] + torch.arange(-before, after)  # (B, L)
        inside = (positions >= self.starts[series, None]) & (positions < self.stops[series, None])
        return Windows(self.values[positions.clamp(0, len(self.values) - 1)], inside)

    def without_tails(self, tails: Tensor) -> "SeriesPool":
        """The same series, each without its last values.

        Args:
            tails: (N,) how many values each series loses.
        """
        return SeriesPool(self.values, self.starts, self.stops - tails)


class WindowDataset(Dataset[Windows]):
    """The windows around the given origins, fetched batch by batch.

    Args:
        pool: the series.
        series: (M,) the series of each origin.
        origins: (M,) positions in ``pool.values``.
        before, after: window sizes, as in ``SeriesPool.windows``.
    """

    def __init__(self, pool: SeriesPool, series: Tensor, origins: Tensor, *, before: int, after: int) -> None:
        self.pool, self.series, self.origins = pool, series, origins
        self.before, self.after = before, after

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: int) -> Windows:
        values, seen = self.__getitems__([index])
        return Windows(values[0], seen[0])

    def __getitems__(self, indices: list[int]) -> Windows:
        """All windows of a batch in one gather: PyTorch's batched-fetch protocol."""
        chosen = torch.as_tensor(indices)
        return self.pool.windows(self.series[chosen], self.origins[chosen], before=self.before, after=self.after)


def training_origins(pool: SeriesPool, *, least_history: int, wished_history: int) -> tuple[Tensor, Tensor]:
    """Every origin with enough values before it and a target.

    Args:
        pool: the series.
        least_history: values of a series that must precede its first origin.
        wished_history: values that should, where they are no more than half of the series.

    Returns:
        The series and the position of each origin, both (M,).
    """
    history = ((pool.stops - pool.starts) // 2).clamp(max=wished_history).clamp(min=least_history)
    return _consecutive(pool.starts + history, pool.stops)


def tail_origins(pool: SeriesPool, tails: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
    """Every ``step``-th origin in the last ``tails`` (N,) values of each series: series and positions, both (M,)."""
    first = pool.stops - tails
    series, origins = _consecutive(first, pool.stops)
    kept = (origins - first[series]) % step == 0
    return series[kept], origins[kept]


def _consecutive(first: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """All positions first[n], ..., stop[n] - 1 of every series n, and their series."""
    counts = (stop - first).clamp(min=0)
    series = torch.repeat_interleave(torch.arange(len(counts)), counts)
    within = torch.arange(len(series)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return series, first[series] + within
