"""Rows of different lengths in one batch: brought to one form at the entry of a stack, given back at its end.

Shapes: B batch, S sequence, D channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .ops.padding import align_left, align_right, check_lengths, valid_steps


@dataclass(frozen=True)
class PaddedRows:
    """Which steps of a batch are real: the first ``lengths[b]`` of row b, or the last where rows are padded left."""

    lengths: Tensor  # (B,)
    padding: str
    num_steps: int

    @classmethod
    def of(cls, x: Tensor, lengths: Tensor, padding: str) -> "PaddedRows":
        """For inputs x (B, S, ...); raises ValueError for lengths or a side that do not fit."""
        B, S = x.shape[:2]
        check_lengths(lengths, padding, B, S)
        # Values on a GPU are not looked at: one out of range must not index outside.
        return cls(lengths.clamp(0, S), padding, S)

    def enter(self, x: Tensor) -> Tensor:
        """x (B, S, ...) with each row's steps in front and zeros behind: what padding held reaches no gradient."""
        return self._clear(align_left(x, self.lengths) if self.padding == "left" else x)

    def leave(self, y: Tensor) -> Tensor:
        """The inverse of ``enter``: zeros where the padding is, each row's steps where they came from."""
        y = self._clear(y)
        return align_right(y, self.lengths) if self.padding == "left" else y

    def reverse(self, x: Tensor) -> Tensor:
        """Entered rows x (B, S, ...), each with its own steps in reversed order; its own inverse."""
        step = torch.arange(self.num_steps, device=x.device)
        mirrored = torch.where(self._valid(), self.lengths[:, None] - 1 - step, step)  # (B, S)
        return x[torch.arange(x.shape[0], device=x.device)[:, None], mirrored]

    def _valid(self) -> Tensor:
        return valid_steps(self.lengths, self.num_steps)

    def _clear(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self._valid().view(*x.shape[:2], *[1] * (x.ndim - 2)), 0)
