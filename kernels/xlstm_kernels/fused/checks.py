"""What the blocks' single calls check of a memory before the C core takes pointers to it."""

import torch
from torch import Tensor

from ..ops.checks import check_devices, check_state
from ..state import mLSTMState, sLSTMState


def check_memory(
    x: Tensor, state: mLSTMState | sLSTMState, kind: type[mLSTMState | sLSTMState], shapes: tuple[tuple[int, ...], ...]
) -> None:
    """Raise ValueError or TypeError unless a state's parts have the given shapes behind the batch of x, in float32."""
    B = x.shape[0]  # len() would fix B in a trace
    check_state(state, kind, [(B, *shape) for shape in shapes], torch.float32, name="state.cell")
    check_devices({"x": x, **{f"state.cell.{name}": leaf for name, leaf in zip(kind._fields, state, strict=True)}})
