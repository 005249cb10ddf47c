"""sLSTM in Triton as a PyTorch operator: one launch forwards; backwards one more, and a matrix product for the weights.

Gates, recurrent weights and h keep their own types, in which they enter products; all else is float32. States enter
and leave as (c, n, m): the kernels turn them into averages and back.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from ...state import sLSTMState
from ..registration import must_record, register_gradient, register_op, straight
from ..triton_launcher import launch, on_device_of
from .plan import ROWS, Plan, ProductPlan, num_processors, plan, product_plan
from .triton_kernels import slstm_backward, slstm_forward, slstm_weight_parts, slstm_weight_sum

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # h, then the last h, c, n and m, then the tape
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of gates, weight, bias, h, c and n

SUM_BLOCK = {"BLOCK": 64}


def slstm_triton(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    state: sLSTMState | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
) -> tuple[Tensor, sLSTMState]:
    """The contract of ``slstm_native``, but for float64."""
    before: tuple[Tensor | None, ...] = (None,) * 4 if state is None else state
    inputs = (gates, _as_factor(recurrent_weight), bias, *before)
    arguments: tuple[Any, ...] = (*inputs, resets, lengths, exponential_forget, clip, must_record(*inputs))
    h, *last, _ = _run(*arguments)
    return h, sLSTMState(*last)


def _as_factor(weight: Tensor) -> Tensor:
    """The weight in the type in which autocast, where it is on, has matrix products done."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def _forward(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h_first: Tensor | None,
    c_first: Tensor | None,
    n_first: Tensor | None,
    m_first: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
    record: bool,
) -> _Outputs:
    outputs = _outputs(
        gates, recurrent_weight, bias, h_first, c_first, n_first, m_first, resets, lengths,
        exponential_forget, clip, record,
    )  # fmt: skip
    *written, tape = outputs
    B, S, _, NH, DH = gates.shape
    gates = _in_units_of(gates, DH)
    others = (recurrent_weight, bias, h_first, c_first, n_first, m_first, _flags(resets), lengths)
    _launch(
        slstm_forward,
        plan(DH, _has_single(gates, recurrent_weight)),
        (gates, *map(_contiguous, others), *written, tape if record else None),
        (B, S, NH, *(stride // DH for stride in gates.stride()[:4])),
        exchange=outputs[0],
        EXPONENTIAL_FORGET=exponential_forget,
    )
    return outputs


def _outputs(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h_first: Tensor | None,
    c_first: Tensor | None,
    n_first: Tensor | None,
    m_first: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
    record: bool,
) -> _Outputs:
    """Room for the outputs."""
    B, S, _, NH, DH = gates.shape
    # Small alphas and slopes keep their relative precision in bfloat16, which float16 has no range for.
    dtype = torch.float32 if gates.dtype == torch.float32 else torch.bfloat16
    parts = 4 - exponential_forget + (gates.dtype == torch.float16)
    tape = gates.new_empty((B, S, NH, parts, DH) if record else (0,), dtype=dtype)
    h, c, n, m = (gates.new_empty(B, NH, DH, dtype=torch.float32) for _ in range(4))
    return gates.new_empty(B, S, NH, DH), h, c, n, m, tape


def _backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    dn_last: Tensor | None,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h: Tensor,
    tape: Tensor,
    h_first: Tensor | None,
    c_first: Tensor | None,
    n_first: Tensor | None,
    c_last: Tensor,
    n_last: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
) -> _Gradients:
    gradients = _gradients(
        dh, dh_last, dc_last, dn_last, recurrent_weight, bias, h, tape, h_first, c_first, n_first, c_last, n_last,
        resets, lengths, exponential_forget, clip,
    )  # fmt: skip
    dgates, dweight, dbias, *dfirst = gradients
    B, S, NH, DH = h.shape
    resets, h_first = _flags(resets), _contiguous(h_first)
    inputs = (dh, dh_last, dc_last, dn_last, recurrent_weight, h, tape, c_first, n_first, c_last, n_last)
    _launch(
        slstm_backward,
        plan(DH, _has_single(h, recurrent_weight)),
        (*map(_contiguous, (*inputs, resets, lengths)), dgates, *dfirst),
        (B, S, NH, 0.0 if clip is None else clip),
        exchange=dgates,
        CLIPPED=clip is not None,
        EXPONENTIAL_FORGET=exponential_forget,
    )
    _weight_gradients(dgates, h, h_first, resets, dweight, None if bias is None else dbias)
    return gradients


def _gradients(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    dn_last: Tensor | None,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h: Tensor,
    tape: Tensor,
    h_first: Tensor | None,
    c_first: Tensor | None,
    n_first: Tensor | None,
    c_last: Tensor,
    n_last: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
) -> _Gradients:
    """Room for the gradients."""
    B, S, NH, DH = h.shape
    dgates = h.new_empty(B, S, 4, NH, DH)
    dweight = recurrent_weight.new_empty(recurrent_weight.shape)
    dbias = dweight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    dh_first, dc_first, dn_first = (c_last.new_empty((0,) if c_first is None else c_first.shape) for _ in range(3))
    return dgates, dweight, dbias, dh_first, dc_first, dn_first


def _launch(
    kernel: Any, layout: Plan, arrays: tuple[Any, ...], sizes: tuple[Any, ...], *, exchange: Tensor, **flags: bool
) -> None:
    """A kernel that goes through time; programs that share a head wait for each other in ``exchange``."""
    B, _, NH = sizes[:3]
    DH = exchange.shape[-1]
    tiles, programs = _cdiv(B, ROWS) * NH, _cdiv(DH, layout.units)
    at_once = tiles
    if programs > 1:
        exchange.view(torch.int32 if exchange.dtype == torch.float32 else torch.int16).fill_(-1)  # ABSENT
        at_once = max(1, num_processors(exchange.device) // programs)
    constants = _constants(layout, DH, programs > 1, **flags)
    with on_device_of(exchange):
        for first in range(0, tiles, at_once):
            launch(kernel, (programs, min(at_once, tiles - first)), (*arrays, first, *sizes), constants)


@functools.cache
def _constants(layout: Plan, head_dim: int, cooperative: bool, **flags: bool) -> dict[str, Any]:
    """What a kernel that goes through time is compiled for."""
    tile = {"DH": head_dim, "D": layout.width, "UNITS": layout.units, "ROWS": ROWS, "STAGES": layout.stages}
    return {**tile, **flags, "num_warps": layout.warps, "launch_cooperative_grid": cooperative}


@functools.cache
def _product_constants(tile: ProductPlan, width: int, head_dim: int) -> dict[str, Any]:
    sizes = {"DH": head_dim, "D": width, "OUT": tile.out, "IN": tile.into, "ROWS": tile.rows}
    return {**sizes, "STAGES": tile.stages, "num_warps": tile.warps}


def _weight_gradients(
    dgates: Tensor, h: Tensor, h_first: Tensor | None, resets: Tensor | None, dweight: Tensor, dbias: Tensor | None
) -> None:
    B, S, NH, DH = h.shape
    single = dgates.dtype == torch.float32
    width = plan(DH, single).width
    tile = product_plan(width, single)
    tiles, size = (4 * width // tile.out) * (width // tile.into), 4 * NH * DH * (DH + 1)
    # As many parts as give each processor two programs, of at least four tiles of rows.
    num_parts = max(1, min(2 * num_processors(h.device) // (tiles * NH), _cdiv(B * S, 4 * tile.rows)))
    rows = _cdiv(_cdiv(B * S, num_parts), tile.rows) * tile.rows
    num_parts = _cdiv(B * S, rows)
    parts = h.new_empty(num_parts, size, dtype=torch.float32)
    with on_device_of(h):
        inputs = (dgates, h, h_first, resets, parts, rows, B, S, NH)
        launch(slstm_weight_parts, (tiles, NH, num_parts), inputs, _product_constants(tile, width, DH))
        outputs = (parts, dweight, dbias, num_parts, 4 * NH * DH * DH, size)
        launch(slstm_weight_sum, (_cdiv(size, SUM_BLOCK["BLOCK"]),), outputs, SUM_BLOCK)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _has_single(*operands: Tensor) -> bool:
    return any(x.dtype == torch.float32 for x in operands)


def _in_units_of(gates: Tensor, DH: int) -> Tensor:
    """Gates whose strides are multiples of DH: so the kernel knows their alignment without being compiled for them."""
    regular = gates.stride(-1) == 1 and all(stride % DH == 0 for stride in gates.stride()[:4])
    return gates if regular else gates.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _flags(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.contiguous().view(torch.int8)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    _, weight, bias, h_first, c_first, n_first, _, resets, lengths, *ctx.options, _ = inputs
    h, _, c_last, n_last, m_last, tape = output
    ctx.mark_non_differentiable(m_last, tape)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(weight, bias, h, tape, h_first, c_first, n_first, c_last, n_last, resets, lengths)


def _differentiate(ctx: Any, dh: Tensor | None, *of_rest: Tensor | None) -> tuple[Tensor | None, ...]:
    _, bias, h, _, h_first, c_first, n_first, c_last, *_ = ctx.saved_tensors
    dlast = of_rest[:3]  # there is none of m and of the tape
    if any(x is not None for x in dlast):
        dlast = tuple(torch.zeros_like(c_last) if x is None else x for x in dlast)
    dh = torch.zeros_like(h) if dh is None else dh
    arguments: tuple[Any, ...] = (dh, *dlast, *ctx.saved_tensors, *ctx.options)
    dgates, dweight, *others = _run_backward(*arguments)
    given = zip((bias, h_first, c_first, n_first), others, strict=True)
    return dgates, dweight, *(None if x is None else dx for x, dx in given), *(None,) * 6


# For all devices: Triton's interpreter runs the same kernels on the CPU.
_operator = register_op("slstm_triton", _forward, _outputs)
_run = register_gradient(_operator, _setup_context, _differentiate)
_run_backward = straight(register_op("slstm_triton_backward", _backward, _gradients))
