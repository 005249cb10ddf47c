"""Rows: what is known at consecutive steps of several series.

Shapes: B batch, L steps, C numeric covariates, K categorical covariates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Rows(NamedTuple):
    """Values and covariates of consecutive steps, oldest first.

    Attributes:
        values: (B, L) float64, not read where not seen.
        seen: (B, L) bool, false where a value is missing, and outside the series.
        numeric: (B, L, C) float32 covariates, standardised.
        categories: (B, L, K) int64 codes of categories, 0 for an unknown one.
    """

    values: Tensor
    seen: Tensor
    numeric: Tensor
    categories: Tensor

    def steps(self, part: slice) -> "Rows":
        """Some of the steps."""
        return Rows(*(field[:, part] for field in self))

    def series(self, index: Tensor | slice) -> "Rows":
        """Some of the series, or some of them repeatedly."""
        return Rows(*(field[index] for field in self))

    def with_values(self, values: Tensor) -> "Rows":
        """The same steps with these values (B, L), all seen."""
        return Rows(values, torch.ones_like(values, dtype=torch.bool), self.numeric, self.categories)

    def move(self, device: torch.device) -> "Rows":
        """The same rows on another device."""
        return Rows(*(field.to(device) for field in self))


def to_rows(values: np.ndarray, numeric: np.ndarray | None = None, categories: np.ndarray | None = None) -> Rows:
    """One series' steps (L,) with their covariates (L, C) and (L, K); a value that is NaN is missing."""
    steps = torch.tensor(values, dtype=torch.float64)
    return Rows(
        steps.nan_to_num(0.0)[None],
        steps.isfinite()[None],
        torch.zeros(1, len(steps), 0) if numeric is None else torch.tensor(numeric, dtype=torch.float32)[None],
        torch.zeros(1, len(steps), 0, dtype=torch.int64) if categories is None else torch.tensor(categories)[None],
    )


def join_steps(parts: Sequence[Rows]) -> Rows:
    """Rows of the same series, one after the other."""
    return Rows(*(torch.cat(fields, 1) for fields in zip(*parts, strict=True)))


def join_series(parts: Sequence[Rows]) -> Rows:
    """The rows of several groups of series as one."""
    return Rows(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def unseen_rows(batch_size: int, steps: int, *, numeric: int = 0, categories: int = 0) -> Rows:
    """Steps of which nothing is known: those before a series begins, or ahead of it where there are no covariates."""
    return Rows(
        torch.zeros(batch_size, steps, dtype=torch.float64),
        torch.zeros(batch_size, steps, dtype=torch.bool),
        torch.zeros(batch_size, steps, numeric),
        torch.zeros(batch_size, steps, categories, dtype=torch.int64),
    )
