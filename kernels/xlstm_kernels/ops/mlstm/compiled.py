"""mLSTM in C as a PyTorch operator: one call for a whole sequence forward, one for its exact backward.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim.
"""

import ctypes
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ... import buffers, core
from ...state import initial_mlstm_state, mLSTMState
from ..registration import must_record, register_gradient, register_op, straight

MAX_LANES = 64


class HeadSizes(ctypes.Structure):
    """``mlstm_head`` of csrc/types.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("DK", "DV", "DVL", "normalize")]


class _Sizes(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in ("B", "S", "NH", "chunk")), ("head", HeadSizes)]


def mlstm_compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState | None,
    resets: Tensor | None,
    chunk_size: int | None,
    normalize: bool,
) -> tuple[Tensor, mLSTMState]:
    """The contract of ``mlstm_native``, for tensors that ``core.runs``."""
    B, S, NH, DK = q.shape
    L = min(core.whole(chunk_size), MAX_LANES) if chunk_size else default_chunk_size(S, DK)
    state = state or initial_mlstm_state(B, NH, DK, v.shape[3], device=q.device)
    dtype, given = v.dtype, (q, k, v, i, F.logsigmoid(f.float()), state.c, state.n, state.m.detach())
    q, k, v, i, logf, c, n, m = (x.float().contiguous() for x in given)
    resets = None if resets is None else resets.contiguous()
    record = must_record(q, k, v, i, logf, c, n)
    h, c, n, m = _run(q, k, v, i, logf, c, n, m, resets, L, normalize, record)
    return h.to(dtype), mLSTMState(c, n, m)


def default_chunk_size(sequence_length: int, qk_head_dim: int) -> int:
    """The fastest measured, in steps; large heads want fewer states between chunks. One for all lengths in a trace."""
    if not isinstance(sequence_length, int):
        return 64 if qk_head_dim >= 64 else 32
    if sequence_length <= 16:
        return 16
    return 64 if qk_head_dim >= 64 and sequence_length > 32 else 32


def memory_floats(DK: int, DV: int) -> int:
    """The size of one head's memory: c with rows of whole vectors, n and m."""
    return DK * (core.whole(DV) + 1) + 1


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # h, c, n and m, then the tape
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
    """Room for the outputs; the tape holds each step's normaliser and m, and the memories between chunks."""
    B, S, NH, DK = q.shape
    chunks = (S + chunk_size - 1) // chunk_size
    steps = buffers.empty((B, NH, 2, chunks * chunk_size) if record else (0,), like=q)
    memories = buffers.empty((B, NH, chunks + 1, memory_floats(DK, v.shape[-1])) if record else (0,), like=q)
    h, c, n, m = (buffers.empty(x.shape, like=x) for x in (v, c, n, m))
    return h, c, n, m, steps, memories


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
    q, k, v, i, logf, c, n, m, resets = core.contiguous(q, k, v, i, logf, c, n, m, resets)
    outputs = _outputs(q, k, v, i, logf, c, n, m, resets, chunk_size, normalize, record)
    h, *last, steps, memories = outputs
    tape = (steps, memories) if record else (None, None)
    sizes = _sizes(q, v, chunk_size, normalize)
    core.call("xlstm_mlstm_forward", sizes, q, k, v, i, logf, resets, c, n, m, h, *tape, *last)
    return outputs


def _backward(
    dh: Tensor,
    dc: Tensor,
    dn: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    logf: Tensor,
    resets: Tensor | None,
    h: Tensor,
    steps: Tensor,
    memories: Tensor,
    chunk_size: int,
    normalize: bool,
) -> _Gradients:
    dh, dc, dn, q, k, v, i, logf, resets = core.contiguous(dh, dc, dn, q, k, v, i, logf, resets)
    gradients = _gradients(dh, dc, dn, q, k, v, i, logf)
    sizes = _sizes(q, v, chunk_size, normalize)
    core.call("xlstm_mlstm_backward", sizes, q, k, v, i, logf, resets, h, steps, memories, dh, dc, dn, *gradients)
    return gradients


def _gradients(
    dh: Tensor, dc: Tensor, dn: Tensor, q: Tensor, k: Tensor, v: Tensor, i: Tensor, logf: Tensor, *rest: object
) -> _Gradients:
    """Room for the gradients."""
    dq, dk, dv, di, dlogf, dc, dn = (buffers.empty(x.shape, like=x) for x in (q, k, v, i, logf, dc, dn))
    return dq, dk, dv, di, dlogf, dc, dn


def _sizes(q: Tensor, v: Tensor, chunk_size: int, normalize: bool) -> _Sizes:
    B, S, NH, DK = q.shape
    DV = v.shape[-1]
    return _Sizes(B, S, NH, chunk_size, HeadSizes(DK, DV, core.whole(DV), normalize))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    q, k, v, i, logf, _, _, _, resets, ctx.chunk_size, ctx.normalize, _ = inputs
    h, c, n, m, steps, memories = output
    ctx.mark_non_differentiable(m, steps, memories)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(q, k, v, i, logf, resets, h, steps, memories)
    ctx.shapes = h.shape, c.shape, n.shape


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    given = zip(gradients, ctx.shapes, strict=False)  # of h, c, n; there is none of m
    q, k, v, i, logf, resets, h, steps, memories = ctx.saved_tensors
    dh, dc, dn = (q.new_zeros(shape) if dx is None else dx for dx, shape in given)
    gradients = _run_backward(dh, dc, dn, q, k, v, i, logf, resets, h, steps, memories, ctx.chunk_size, ctx.normalize)
    return *gradients, None, None, None, None, None


_operator = register_op("mlstm_compiled", _forward, _outputs, device="CPU")
_run = register_gradient(_operator, _setup_context, _differentiate, num_results=4)
_run_backward = straight(register_op("mlstm_compiled_backward", _backward, _gradients, device="CPU"))
