"""What the blocks' single calls check of a memory before the C core takes pointers to it."""

import torch
from torch import Tensor

from ..ops.checks import check_devices, check_shape, check_state
from ..state import mLSTMState, sLSTMState


def check_memory(x: Tensor, state: mLSTMState | sLSTMState, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Raise ValueError or TypeError unless a state's parts have the given shapes behind the batch of x, in float32."""
    named = {f"state.cell.{name}": leaf for name, leaf in zip(state._fields, state, strict=True)}
    for (name, leaf), shape in zip(named.items(), shapes, strict=True):
        check_shape(name, leaf, (x.shape[0], *shape), "(B, ...)")  # len() would fix B in a trace
    check_state(state, torch.float32)
    check_devices({"x": x, **named})
