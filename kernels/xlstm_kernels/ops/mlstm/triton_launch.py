"""mLSTM in Triton as a PyTorch operator: one launch for a whole sequence forward, two for its exact backward.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, NC chunks.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...state import mLSTMState
from ..registration import must_record, register_gradient, register_op
from .triton_kernels import mlstm_backward_chunks, mlstm_backward_states, mlstm_forward

SMALLEST_TILE = 16  # of a matrix product in Triton
LARGEST_CHUNK = 64  # 128 steps in one tile cost more than they save


class _Plan(NamedTuple):
    """How the work is cut: fixed, so that nothing is compiled or timed but what was tested."""

    chunk: int
    value_tile: int  # at most this wide
    warps: int
    stages: int


# By the wider head dim, padded: registers without spills come first, then two programs on a multiprocessor. Up to 64
# eight warps lose, because one group of four is a tile of the tensor cores; at 128 four would spill.
_HALF_PLANS = {16: _Plan(32, 16, 1, 3), 32: _Plan(32, 32, 1, 3), 64: _Plan(64, 64, 4, 3), 128: _Plan(64, 64, 8, 2)}
# Products of float32 run without tensor cores, and hold their operands in registers.
_FLOAT_PLANS = {16: _Plan(32, 16, 4, 1), 32: _Plan(32, 16, 4, 1), 64: _Plan(16, 32, 4, 1), 128: _Plan(16, 16, 8, 1)}


def mlstm_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    logf: Tensor,
    state: mLSTMState,
    resets: Tensor | None,
    chunk_size: int | None,
    normalize: bool,
) -> tuple[Tensor, mLSTMState]:
    """The contract of ``mlstm_native``, but for float64 and for more than 128 key dims."""
    dtype = v.dtype
    operand = torch.promote_types(torch.promote_types(q.dtype, k.dtype), dtype)
    q, k, v = (_with_dense_rows(x.to(operand)) for x in (q, k, v))
    L = _tile(chunk_size, LARGEST_CHUNK) if chunk_size else _plan(operand, q.shape[3], v.shape[3]).chunk
    c, n, m = state
    inputs = (q, k, v, i.contiguous(), logf.contiguous(), c.contiguous(), n.contiguous(), m.detach().contiguous())
    resets = None if resets is None else resets.contiguous()
    h, c, n, m, *_ = _operator(*inputs, resets, L, normalize, must_record(*inputs))
    return h.to(dtype), mLSTMState(c, n, m)


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _tile(size: int, largest: int) -> int:
    """The power of two that holds ``size``, within what a product takes."""
    return min(max(triton.next_power_of_2(size), SMALLEST_TILE), largest)


def _plan(dtype: torch.dtype, DK: int, DV: int) -> _Plan:
    plans = _HALF_PLANS if dtype == torch.bfloat16 else _FLOAT_PLANS
    return plans[_tile(max(DK, DV), 128)]


def _options(q: Tensor, v: Tensor, chunk_size: int, normalize: bool, resets: Tensor | None) -> dict[str, Any]:
    """What all three kernels are compiled for."""
    DK, DV = q.shape[3], v.shape[3]
    plan = _plan(q.dtype, DK, DV)
    value_tile = _tile(DV, plan.value_tile)
    return {
        "BK": _tile(DK, 128),
        "BV": value_tile,
        "TILES": triton.cdiv(DV, value_tile),
        "L": chunk_size,
        "WITH_RESETS": resets is not None,
        "NORMALIZE": normalize,
        "OPERAND": tl.bfloat16 if q.dtype == torch.bfloat16 else tl.float32,
        # States overflow float16: it takes the road of float32, with products of its own precision.
        "PRECISION": "tf32" if q.dtype == torch.float16 else "ieee",
        "num_warps": plan.warps,
    }


def _state_dtype(q: Tensor) -> torch.dtype:
    """Of the states between chunks: that of the products which they enter."""
    return torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32


def _logs_dtype(q: Tensor) -> torch.dtype:
    """Of sums of log gates: a difference of two is as exact as the operands are."""
    return torch.float64 if q.dtype == torch.float32 else torch.float32


_Outputs = tuple[  # h, c, n and m, then the tape
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of q, k, v, i, log f, c, n


def _outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    logf: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    resets: Tensor | None,
    chunk_size: int,
    normalize: bool,
    record: bool,
) -> _Outputs:
    """Room for the outputs; the tape: a, U and the denominator's slope of each step, scales, c and n of each chunk."""
    B, S, NH, DK = q.shape
    NC, DV = (S + chunk_size - 1) // chunk_size, v.shape[3]
    logs = _logs_dtype(q)

    def room(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape if record else (0,), dtype=dtype, device=q.device)

    h = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    c, n, m = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (c, n, m))
    a, u = (room(B, NH, S, dtype=logs) for _ in range(2))
    slope = room(B, NH, S if normalize else 0, dtype=torch.float32)
    scales = room(B, NH, NC, 2, dtype=logs)
    c_states = room(B, NH, NC, DK, DV, dtype=_state_dtype(q))
    return h, c, n, m, a, u, slope, scales, c_states, room(B, NH, NC, DK, dtype=torch.float32)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    logf: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    resets: Tensor | None,
    chunk_size: int,
    normalize: bool,
    record: bool,
) -> _Outputs:
    outputs = _outputs(q, k, v, i, logf, c, n, m, resets, chunk_size, normalize, record)
    (B, S, NH, DK), DV = q.shape, v.shape[3]
    options = _options(q, v, chunk_size, normalize, resets)
    logs = tl.float64 if _logs_dtype(q) == torch.float64 else tl.float32
    stages = _plan(q.dtype, DK, DV).stages
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    with torch.cuda.device_of(q):
        mlstm_forward[(options["TILES"] * B * NH,)](
            *(q, k, v, i, logf, resets, c, n, m, *outputs, *strides, S, NH, DK, DV, DK**-0.5),
            **options,
            RECORD=record,
            LOGS=logs,
            STAGES=stages,
        )
    return outputs


def _backward(
    dh: Tensor,
    dc: Tensor,
    dn: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    resets: Tensor | None,
    h: Tensor,
    a: Tensor,
    u: Tensor,
    slope: Tensor,
    scales: Tensor,
    c_states: Tensor,
    n_states: Tensor,
    chunk_size: int,
    normalize: bool,
) -> _Gradients:
    gradients = _gradients(
        dh, dc, dn, q, k, v, i, resets, h, a, u, slope, scales, c_states, n_states, chunk_size, normalize
    )
    *of_steps, dc_first, dn_first = gradients
    dh, dc, dn = (x.contiguous() for x in (dh, dc, dn))
    y, dc_states, dn_states = torch.empty_like(slope), torch.empty_like(c_states), torch.empty_like(n_states)
    (B, S, NH, DK), DV = q.shape, v.shape[3]
    options = _options(q, v, chunk_size, normalize, resets)
    stages = _plan(q.dtype, DK, DV).stages
    sizes = (S, NH, DK, DV, DK**-0.5)
    states = (dc, dn, y, dc_states, dn_states, dc_first, dn_first)
    tape = (a, u, y, scales, c_states, n_states, dc_states, dn_states)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    with torch.cuda.device_of(q):
        mlstm_backward_states[(options["TILES"] * B * NH,)](
            *(q, resets, h, dh, u, slope, scales, *states, *q.stride()[:3], *sizes),
            **options,
            STAGES=stages,
        )
        mlstm_backward_chunks[(triton.cdiv(S, chunk_size) * B * NH,)](
            *(q, k, v, resets, dh, *tape, *of_steps, *strides, *sizes), **options
        )
    return gradients


def _gradients(
    dh: Tensor,
    dc: Tensor,
    dn: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    resets: Tensor | None,
    h: Tensor,
    a: Tensor,
    u: Tensor,
    slope: Tensor,
    scales: Tensor,
    c_states: Tensor,
    n_states: Tensor,
    chunk_size: int,
    normalize: bool,
) -> _Gradients:
    """Room for the gradients."""
    like = (q, k, v, i, i, dc, dn)
    dq, dk, dv, di, dlogf, dc, dn = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in like)
    return dq, dk, dv, di, dlogf, dc, dn


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    q, k, v, i, _, _, _, _, resets, ctx.chunk_size, ctx.normalize, _ = inputs
    h, c, n, m, *tape = output
    ctx.mark_non_differentiable(m, *tape)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(q, k, v, i, resets, h, *tape)
    ctx.of_states = c.shape, n.shape


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, i, resets, h, a, u, slope, scales, c_states, n_states = ctx.saved_tensors
    dh, dc, dn = gradients[:3]  # there is none of m and of the tape
    dh = torch.zeros_like(h) if dh is None else dh
    dc, dn = (i.new_zeros(shape) if x is None else x for x, shape in zip((dc, dn), ctx.of_states, strict=True))
    tape = (a, u, slope, scales, c_states, n_states, ctx.chunk_size, ctx.normalize)
    return *_backward_operator(dh, dc, dn, q, k, v, i, resets, h, *tape), None, None, None, None, None


# For all devices: Triton's interpreter runs the same kernels on the CPU.
_operator = register_op("mlstm_triton", _forward, _outputs)
_backward_operator = register_op("mlstm_triton_backward", _backward, _gradients)
register_gradient("mlstm_triton", _setup_context, _differentiate)
