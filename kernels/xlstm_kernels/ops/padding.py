"""Rows of different lengths in one batch: which steps are a row's own, and how to bring them to the front.

Shapes: B batch, S sequence. A row of length n has its steps at 0 ... n - 1 (``padding="right"``, the form that the
recurrences run on) or at S - n ... S - 1 (``padding="left"``).
"""

from typing import TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from ..checks import check_choice
from ..state import where_state
from .checks import check_shape

State = TypeVar("State")


def check_lengths(lengths: Tensor | None, padding: str, batch_size: int, sequence_length: int) -> None:
    """Raise unless ``lengths`` is None or an integer (B,) of values in 0 ... S, and ``padding`` a side.

    Values are looked at on the CPU alone, where that waits for nothing.
    """
    check_choice("padding", padding, ("right", "left"))
    if lengths is None:
        return
    check_shape("lengths", lengths, (batch_size,), "(B,)")
    if lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths must be int64 or int32, got {lengths.dtype}; convert with lengths.long()")
    if lengths.device.type == "cpu" and not (torch.compiler.is_compiling() or is_fake(lengths)):
        outside = [length for length in lengths.tolist() if not 0 <= length <= sequence_length]
        if outside:
            raise ValueError(f"lengths must be between 0 and S = {sequence_length}, got {outside[0]}")


def valid_steps(lengths: Tensor, sequence_length: int) -> Tensor:
    """Whether each step of right-padded rows is the row's own: bool (B, S)."""
    return torch.arange(sequence_length, device=lengths.device) < lengths[:, None]


def align_left(x: Tensor, lengths: Tensor) -> Tensor:
    """Left-padded rows x (B, S, ...) to right-padded ones: each is rolled until its own steps come first."""
    return _roll(x, x.shape[1] - lengths)


def align_right(x: Tensor, lengths: Tensor) -> Tensor:
    """Right-padded rows x (B, S, ...) to left-padded ones; the inverse of ``align_left``."""
    return _roll(x, lengths)


def _roll(x: Tensor, by: Tensor) -> Tensor:
    """Each row b of x (B, S, ...) from its step ``by[b]`` on, then what lies before."""
    S = x.shape[1]
    steps = (torch.arange(S, device=x.device) + by[:, None]) % S  # (B, S)
    return x[torch.arange(x.shape[0], device=x.device)[:, None], steps]


def to_own_steps(
    inputs: tuple[Tensor, ...], resets: Tensor | None, lengths: Tensor | None, padding: str
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Inputs (B, S, ...) and resets in the form that the recurrences run on: right-padded, and outside of the rows'
    own steps zero, whatever was there, and without a reset."""
    if lengths is None:
        return inputs, resets
    if padding == "left":
        inputs = tuple(align_left(x, lengths) for x in inputs)
        resets = None if resets is None else align_left(resets, lengths)
    valid = valid_steps(lengths, inputs[0].shape[1])
    inputs = tuple(x.masked_fill(~valid.view(*valid.shape, *[1] * (x.ndim - 2)), 0.0) for x in inputs)
    return inputs, None if resets is None else resets & valid


def from_own_steps(h: Tensor, lengths: Tensor | None, padding: str) -> Tensor:
    """Outputs (B, S, ...) of such inputs, back at the steps that they belong to."""
    return align_right(h, lengths) if lengths is not None and padding == "left" else h


def keep_where_empty(before: State, after: State, lengths: Tensor | None) -> State:
    """The state after a call: bit by bit that before it, gradient included, where a row has no step of its own."""
    return after if lengths is None else where_state(lengths == 0, before, after)
