"""What the loops over time of both scalar memories share: their arguments, and the layout of one step.

Shapes: B batch, S sequence, NH heads, DH head dim; in a step heads lead, so that one batched product serves it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..state import LSTMState, sLSTMState
from .checks import check_devices, check_dtypes, check_resets, check_shape, check_state, check_tensor
from .padding import check_lengths

State = TypeVar("State", sLSTMState, LSTMState)


def check_arguments(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    state: State | None,
    kind: type[State],
    resets: Tensor | None,
    lengths: Tensor | None,
    padding: str,
) -> None:
    """Raise on arguments that do not fit each other, or on a state of another kind."""
    check_tensor("gates", gates)
    if gates.ndim != 5 or gates.shape[2] != 4:
        raise ValueError(f"gates must be (B, S, 4, NH, DH), got {tuple(gates.shape)}")
    B, S, _, NH, DH = gates.shape
    if S == 0:
        raise ValueError(f"the sequence must have at least one step, got gates of shape {tuple(gates.shape)}")
    check_shape("recurrent_weight", recurrent_weight, (4, NH, DH, DH), "(4, NH, DH, DH)")
    operands = {"gates": gates, "recurrent_weight": recurrent_weight}
    if bias is not None:
        check_shape("bias", bias, (4, NH, DH), "(4, NH, DH)")
        operands["bias"] = bias
    check_resets(resets, B, S)
    check_lengths(lengths, padding, B, S)
    dtype = check_dtypes(operands)
    if state is not None:
        check_state(state, kind, ((B, NH, DH),) * len(kind._fields), dtype)
    first = None if state is None else state.h
    check_devices({**operands, "state.h": first, "resets": resets, "lengths": lengths})


def fill_in(
    gates: Tensor, bias: Tensor | None, state: State | None, initial_state: Callable[..., State]
) -> tuple[Tensor, State]:
    """Bias and state to start from, zeros and empty where none is given, in the dtype that states have."""
    B, _, _, NH, DH = gates.shape
    device, dtype = gates.device, torch.promote_types(gates.dtype, torch.float32)
    bias = torch.zeros(4, NH, DH, device=device, dtype=dtype) if bias is None else bias.to(dtype)
    return bias, initial_state(B, NH, DH, device=device, dtype=dtype) if state is None else state


def step_inputs(gates: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Gates (B, S, 4, NH, DH) with the bias as steps (NH, B, 4, DH), cut once: slicing in a loop costs O(S^2) back."""
    return (gates + bias).permute(1, 3, 0, 2, 4).unbind(0)


def mix(step: Tensor, h: Tensor, matrices: Tensor) -> tuple[Tensor, ...]:
    """A step's four pre-activations, each (NH, B, DH): the input's share, and h through the recurrent weights."""
    return torch.baddbmm(step.flatten(2), h, matrices).chunk(4, dim=-1)


def mixing_matrices(recurrent_weight: Tensor) -> Tensor:
    """(4, NH, DH, DH) laid out [gate, head, out, in] to (NH, DH, 4 * DH) laid out [head, in, (gate, out)]."""
    _, NH, DH, _ = recurrent_weight.shape
    return recurrent_weight.permute(1, 3, 0, 2).reshape(NH, DH, 4 * DH)


def step_flags(flags: Tensor | None, sequence_length: int) -> tuple[Tensor, ...] | tuple[None, ...]:
    """Flags (B, S) as one (1, B, 1) for each step, or one None for each."""
    return (None,) * sequence_length if flags is None else flags.t()[:, None, :, None].unbind(0)
