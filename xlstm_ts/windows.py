"""Vectorised windows over a panel: many series in one flat array, cut by index arithmetic.

Shapes: N series, T steps in all, B batch, L window length.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xlstm_ts.rows import Rows, to_rows


class Windows(NamedTuple):
    """A batch of windows.

    Attributes:
        rows: of B windows, L steps each.
        unit: (B,) float64, of each window's series, as in ``SeriesPool.units``.
    """

    rows: Rows
    unit: Tensor


@dataclass(frozen=True)
class SeriesPool:
    """Series laid end to end.

    Attributes:
        rows: one row (1, T, ...) of all steps.
        starts: (N,) int64, where each series begins.
        stops: (N,) int64, one past where each series ends.
        units: (N,) float64, the standard deviation of each series' values; 1 where nothing varies.
    """

    rows: Rows
    starts: Tensor
    stops: Tensor
    units: Tensor

    @classmethod
    def from_lengths(
        cls,
        values: np.ndarray,
        lengths: np.ndarray,
        numeric: np.ndarray | None = None,
        categories: np.ndarray | None = None,
    ) -> "SeriesPool":
        """A pool of consecutive series; a value that is NaN is missing.

        >>> SeriesPool.from_lengths(np.arange(5.0), np.array([3, 2])).starts
        tensor([0, 3])
        """
        stops = torch.as_tensor(lengths, dtype=torch.int64).cumsum(0)
        starts = stops - torch.as_tensor(lengths)
        rows = to_rows(values, numeric, categories)
        return cls(rows, starts, stops, series_deviations(rows, starts, stops))

    @property
    def lengths(self) -> Tensor:
        """(N,) steps of each series."""
        return self.stops - self.starts

    def windows(self, series: Tensor, origins: Tensor, *, before: int, after: int = 0) -> Windows:
        """Windows of ``before`` steps up to each origin and ``after`` steps from it on.

        Args:
            series: (B,) indices of series.
            origins: (B,) positions in the pool: the first one after what is known at forecasting.
            before: steps up to the origin.
            after: steps from the origin on.
        """
        positions = origins[:, None] + torch.arange(-before, after)  # (B, L)
        inside = (positions >= self.starts[series, None]) & (positions < self.stops[series, None])
        at = positions.clamp(0, self.rows.values.shape[1] - 1)
        values, seen, numeric, categories = (field[0][at] for field in self.rows)
        seen, outside = seen & inside, ~inside.unsqueeze(-1)
        rows = Rows(
            values.masked_fill(~seen, 0.0), seen, numeric.masked_fill(outside, 0.0), categories.masked_fill(outside, 0)
        )
        return Windows(rows, self.units[series])

    def without_tails(self, tails: Tensor) -> "SeriesPool":
        """The same series, each without its last steps.

        Args:
            tails: (N,) how many steps each series loses.
        """
        stops = self.stops - tails
        return replace(self, stops=stops, units=series_deviations(self.rows, self.starts, stops))

    def in_units_without(self, tails: Tensor) -> "SeriesPool":
        """The same series, in units of what precedes their last steps: what is held out is measured as what trains."""
        return replace(self, units=self.without_tails(tails).units)


def series_deviations(rows: Rows, starts: Tensor, stops: Tensor) -> Tensor:
    """Standard deviation of the values seen in each of the series laid end to end (N,); 1 where nothing varies."""
    position = torch.arange(rows.values.shape[1])
    owner = torch.bucketize(position, starts, right=True) - 1
    weight = (rows.seen[0] & (position < stops[owner])).double()

    def total(amounts: Tensor) -> Tensor:
        return torch.zeros(len(starts), dtype=torch.float64).index_add_(0, owner, amounts * weight)

    count = total(torch.ones_like(weight)).clamp(min=1)
    mean = total(rows.values[0]) / count
    deviation = (total((rows.values[0] - mean[owner]).square()) / count).sqrt()
    return torch.where(deviation > 0, deviation, 1.0)


class WindowDataset(Dataset[Windows]):
    """The windows around the given origins, fetched batch by batch.

    Args:
        pool: the series.
        series: (M,) the series of each origin.
        origins: (M,) positions in the pool.
        before, after: window sizes, as in ``SeriesPool.windows``.
        step: rows between neighbouring origins of a series.
    """

    def __init__(
        self, pool: SeriesPool, series: Tensor, origins: Tensor, *, before: int, after: int, step: int = 1
    ) -> None:
        self.pool, self.series, self.origins = pool, series, origins
        self.before, self.after, self.step = before, after, step

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: int) -> Windows:
        rows, unit = self.__getitems__([index])
        return Windows(Rows(*(field[0] for field in rows)), unit[0])

    def __getitems__(self, indices: list[int]) -> Windows:
        """All windows of a batch in one gather: PyTorch's batched-fetch protocol."""
        chosen = torch.as_tensor(indices)
        return self.pool.windows(self.series[chosen], self.origins[chosen], before=self.before, after=self.after)


def training_origins(pool: SeriesPool, *, least_history: int, wished_history: int) -> tuple[Tensor, Tensor]:
    """Every origin with enough values before it and a target.

    Args:
        pool: the series.
        least_history: steps of a series that must precede its first origin.
        wished_history: steps that should, where they are no more than half of the series.

    Returns:
        The series and the position of each origin, both (M,).
    """
    history = (pool.lengths // 2).clamp(max=wished_history).clamp(min=least_history)
    return _consecutive(pool.starts + history, pool.stops)


def tail_origins(pool: SeriesPool, tails: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
    """Every ``step``-th origin in the last ``tails`` (N,) steps of each series: series and positions, both (M,)."""
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
