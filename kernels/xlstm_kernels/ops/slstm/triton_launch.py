"""sLSTM in Triton: the operators around one launch forwards and one backwards; the weights' gradient is one product.

Gates, recurrent weights and h keep their own types, in which they enter products; all else is float32.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..padding import valid_steps
from .operators import Gradients, Outputs, register_slstm
from .triton_kernels import slstm_backward, slstm_forward

ROWS = 16  # of a program; the least that a tensor core's product takes


@dataclass(frozen=True)
class _Plan:
    """How a program is laid out for its tile's width; measured, not searched for at run time."""

    num_warps: int
    stages: int  # steps whose inputs are under way at once
    resident: bool = True  # the recurrent weights stay in shared memory


_HALF = {16: _Plan(2, 4), 32: _Plan(4, 4), 64: _Plan(4, 4), 128: _Plan(8, 3)}
_SINGLE = {16: _Plan(2, 3), 32: _Plan(4, 3), 64: _Plan(8, 2), 128: _Plan(8, 1, resident=False)}


def _forward(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    state: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
    record: bool,
) -> Outputs:
    B, S, _, NH, DH = gates.shape
    gates = _in_units_of(gates, DH)
    h, last, tape = _forward_fake(
        gates, recurrent_weight, bias, state, resets, lengths, exponential_forget, clip, record
    )
    marks = _marks(resets, lengths, S)
    strides = [stride // DH for stride in gates.stride()[:4]]
    arrays = (gates, recurrent_weight.contiguous(), bias.contiguous(), state.contiguous(), marks, h, last, tape)
    with torch.cuda.device_of(gates):
        slstm_forward[_grid(B, NH)](
            *arrays,
            *(B, S, *strides),
            **_layout(DH, gates, recurrent_weight),
            MARKED=marks is not None,
            RECORD=record,
            EXPONENTIAL_FORGET=exponential_forget,
        )
    return h, last, tape


def _forward_fake(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    state: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
    record: bool,
) -> Outputs:
    B, S, _, NH, DH = gates.shape
    # Small alphas and slopes keep their relative precision in bfloat16, which float16 has no range for.
    dtype = torch.float32 if gates.dtype == torch.float32 else torch.bfloat16
    tape = (B, S, NH, 4 if exponential_forget else 5, DH) if record else (0,)
    return gates.new_empty(B, S, NH, DH), state.new_empty(state.shape), gates.new_empty(tape, dtype=dtype)


def _backward(
    dh: Tensor,
    dlast: Tensor,
    recurrent_weight: Tensor,
    state: Tensor,
    h: Tensor,
    tape: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
) -> Gradients:
    B, S, NH, DH = h.shape
    dgates, dstate = h.new_empty(B, S, NH, 4, DH), state.new_empty(state.shape)
    marks = _marks(resets, lengths, S)
    arrays = (dh.contiguous(), dlast.contiguous(), recurrent_weight.contiguous(), tape, marks, dgates, dstate)
    with torch.cuda.device_of(h):
        slstm_backward[_grid(B, NH)](
            *arrays,
            *(B, S, 0.0 if clip is None else clip),
            **_layout(DH, h, recurrent_weight),
            MARKED=marks is not None,
            CLIPPED=clip is not None,
            EXPONENTIAL_FORGET=exponential_forget,
        )
    h_before = torch.cat([state[0, :, None].to(h.dtype), h[:, :-1]], dim=1)  # (B, S, NH, DH)
    if resets is not None:
        h_before = h_before.masked_fill(resets[:, :, None, None], 0.0)
    # One product over all steps: (NH, 4 * DH, B * S) times (NH, B * S, DH).
    dweight = dgates.view(B * S, NH, 4 * DH).permute(1, 2, 0) @ h_before.view(B * S, NH, DH).transpose(0, 1)
    dweight = dweight.view(NH, 4, DH, DH).transpose(0, 1).to(recurrent_weight.dtype).contiguous()
    dbias = dgates.sum((0, 1), dtype=torch.float32).transpose(0, 1).contiguous()
    return dgates.permute(0, 1, 3, 2, 4), dweight, dbias, dstate


def _backward_fake(
    dh: Tensor,
    dlast: Tensor,
    recurrent_weight: Tensor,
    state: Tensor,
    h: Tensor,
    tape: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
) -> Gradients:
    B, S, NH, DH = h.shape
    dgates = h.new_empty(B, S, NH, 4, DH).permute(0, 1, 3, 2, 4)
    weight = recurrent_weight
    return dgates, weight.new_empty(weight.shape), state.new_empty(4, NH, DH), state.new_empty(state.shape)


def _grid(B: int, NH: int) -> tuple[int, int]:
    return triton.cdiv(B, ROWS), NH


def _layout(DH: int, *operands: Tensor) -> dict[str, int | bool]:
    """The numbers that a kernel is compiled for, one set for a head dim and the operands' types."""
    D = max(16, triton.next_power_of_2(DH))  # a product has at least 16 columns
    plan = (_SINGLE if any(x.dtype == torch.float32 for x in operands) else _HALF)[D]
    sizes = {"DH": DH, "D": D, "BT": ROWS, "STAGES": plan.stages, "RESIDENT": plan.resident}
    return {**sizes, "num_warps": plan.num_warps}


def _in_units_of(gates: Tensor, DH: int) -> Tensor:
    """Gates whose strides are multiples of DH: so the kernel knows their alignment without being compiled for them."""
    regular = gates.stride(-1) == 1 and all(stride % DH == 0 for stride in gates.stride()[:4])
    return gates if regular else gates.contiguous()


def _marks(resets: Tensor | None, lengths: Tensor | None, S: int) -> Tensor | None:
    """Both in one (B, S): 0 where a step is not the row's own, 2 where the row forgets before it, else 1."""
    if lengths is None:
        return None if resets is None else resets.to(torch.int8) + 1
    own = valid_steps(lengths, S).to(torch.int8)
    return own if resets is None else own + resets


slstm_triton = register_slstm("slstm_triton", _forward, _forward_fake, _backward, _backward_fake, own_types=True)
