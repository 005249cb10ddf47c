"""The paper's mLSTM block: norm, up-projection, convolution, maps, gates, memory, head norm, skip, output gate,
down-projection, residual connection.

Shapes: B batch, S sequence, D width, E inner dim, NH heads, DH head dim, K convolution kernel size.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import buffers, core
from ..ops.mlstm.compiled import HeadSizes, default_chunk_size, memory_floats
from ..ops.registration import must_record, register_gradient, register_op, straight
from ..state import BlockState, mLSTMState
from .checks import check_memory

WIDE = 1 << 17  # numbers in the up-projection's half beyond which BLAS forms its gradient faster than the core's chunks
HISTORY = 16  # as in csrc/core.c: the longest that a convolution looks back


class mLSTMWeights(NamedTuple):
    """Of a block, in the order of csrc/types.h."""

    norm: Tensor  # (D)
    up: Tensor  # (2 E, D)
    conv: Tensor  # (K, E)
    conv_bias: Tensor  # (E)
    q: Tensor  # (blocks, out, in)
    k: Tensor
    v: Tensor
    gates: Tensor  # (2 NH, 3 E)
    gates_bias: Tensor  # (2 NH)
    head_norm: Tensor  # (E)
    skip: Tensor  # (E)
    down: Tensor  # (D, E)


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "S", "NH", "chunk")),
        ("head", HeadSizes),
        *((name, ctypes.c_int64) for name in ("D", "E", "K", "block", "centred", "residual", "wide")),
        *((name, ctypes.c_float) for name in ("norm_eps", "head_norm_eps")),
    ]


def runs(x: Tensor, kernel_size: int) -> bool:
    """Whether the core takes this input and convolution."""
    return core.runs(x) and kernel_size <= HISTORY + 1


def mlstm_block(
    x: Tensor,
    state: BlockState,
    weights: mLSTMWeights,
    resets: Tensor | None,
    lengths: Tensor | None,
    *,
    centred: bool,
    residual: bool,
    norm_eps: float,
    head_norm_eps: float,
) -> tuple[Tensor, BlockState]:
    """The residual stream after the block, and its state.

    Args:
        x: the residual stream (B, S, D).
        state: the window (B, K - 1, E) of the convolution and the memory.
        weights: the block's.
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        lengths: integers (B,); row b ends after its first ``lengths[b]`` steps, beyond them nothing is added.
        centred: whether the block's norm is a LayerNorm, not an RMSNorm.
        residual: whether to return x plus what the block adds to it, or that alone.
        norm_eps, head_norm_eps: of the norms.

    Returns:
        (B, S, D) in the dtype of ``x``, and the state after it in float32.

    Raises:
        ValueError: the memory does not fit ``x`` and the weights.
        TypeError: it is not float32.
    """
    memory = state.cell
    E, NH = weights.skip.shape[0], weights.gates_bias.shape[0] // 2
    check_memory(x, memory, mLSTMState, ((NH, E // NH, E // NH), (NH, E // NH), (NH,)))
    assert isinstance(memory, mLSTMState)
    given = (x, state.conv, memory.c, memory.n, memory.m.detach())
    x32, window, c, n, m = (core.plain(tensor) for tensor in given)
    plain = [core.plain(weight) for weight in weights]
    resets = None if resets is None else resets.contiguous()
    lengths = None if lengths is None else lengths.long().contiguous()
    record = must_record(x32, window, c, n, *plain)
    run = _run if record else _run_forward
    options = default_chunk_size(x.shape[1], E // NH), centred, residual, norm_eps, head_norm_eps
    y, window, c, n, m, *_ = run(x32, window, c, n, m, plain, resets, lengths, *options, record)
    return y.to(x.dtype), BlockState(window, mLSTMState(c, n, m))


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # y, window, c, n and m, then the tape


def _outputs(
    x: Tensor,
    window: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    chunk_size: int,
    centred: bool,
    residual: bool,
    norm_eps: float,
    head_norm_eps: float,
    record: bool,
) -> _Outputs:
    """Room for the outputs; the tape holds what csrc/types.h says of each chunk, and the memories between chunks."""
    B, S, _ = x.shape
    _, NH, DH, _ = c.shape
    chunks = (S + chunk_size - 1) // chunk_size
    steps = buffers.empty((B, chunks * chunk_size * NH * (3 * DH + 2)) if record else (0,), like=x)
    memories = buffers.empty((B, NH, chunks + 1, memory_floats(DH, DH)) if record else (0,), like=x)
    window, c, n, m = map(torch.empty_like, (window, c, n, m))
    return buffers.empty(x.shape, like=x), window, c, n, m, steps, memories


def _forward(
    x: Tensor,
    window: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    chunk_size: int,
    centred: bool,
    residual: bool,
    norm_eps: float,
    head_norm_eps: float,
    record: bool,
) -> _Outputs:
    weights = list(core.contiguous(*weights))
    x, window, c, n, m, resets, lengths = core.contiguous(x, window, c, n, m, resets, lengths)
    outputs = _outputs(
        x, window, c, n, m, weights, resets, lengths, chunk_size, centred, residual, norm_eps, head_norm_eps, record
    )
    y, *last, steps, memories = outputs
    tape = (steps, memories) if record else (None, None)
    sizes = _sizes(x, window, c, weights, chunk_size, centred, residual, norm_eps, head_norm_eps)
    core.call("xlstm_mlstm_block_forward", sizes, weights, x, window, resets, lengths, c, n, m, y, *tape, *last)
    return outputs


def _backward(
    dy: Tensor,
    dwindow: Tensor | None,
    dc: Tensor,
    dn: Tensor,
    x: Tensor,
    window: Tensor,
    c: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    steps: Tensor,
    memories: Tensor,
    chunk_size: int,
    centred: bool,
    residual: bool,
    norm_eps: float,
    head_norm_eps: float,
) -> list[Tensor]:
    weights = list(core.contiguous(*weights))
    x, window, resets, lengths = core.contiguous(x, window, resets, lengths)
    dy, dwindow, dc, dn = core.contiguous(dy, dwindow, dc, dn)
    gradients = [buffers.empty(x.shape, like=x), *map(torch.empty_like, (window, dc, dn, *weights))]
    dweights = mLSTMWeights(*gradients[4:])
    sizes = _sizes(x, window, c, weights, chunk_size, centred, residual, norm_eps, head_norm_eps)
    operands = None
    if sizes.wide:
        shape = (*x.shape[:2], 3 * sizes.E + sizes.D)
        operands = buffers.empty(shape, like=x) if lengths is None else x.new_zeros(shape)
    arrays = (x, window, resets, lengths, steps, memories, dy, dwindow, dc, dn, *gradients[:4], operands)
    core.call("xlstm_mlstm_block_backward", sizes, weights, *arrays, dweights)
    if operands is not None:
        dup, mixed, normed = operands.flatten(0, 1).split((2 * sizes.E, sizes.E, sizes.D), dim=1)
        torch.mm(dup.T, normed, out=dweights.up)
        torch.mm(dy.flatten(0, 1).T, mixed, out=dweights.down)
    return gradients


def _gradients(
    dy: Tensor,
    dwindow: Tensor | None,
    dc: Tensor,
    dn: Tensor,
    x: Tensor,
    window: Tensor,
    c: Tensor,
    weights: list[Tensor],
    *rest: object,
) -> list[Tensor]:
    """Room for the gradients of x, window, c, n and the weights."""
    return [tensor.new_empty(tensor.shape) for tensor in (x, window, dc, dn, *weights)]


def _sizes(
    x: Tensor,
    window: Tensor,
    c: Tensor,
    weights: list[Tensor],
    chunk_size: int,
    centred: bool,
    residual: bool,
    norm_eps: float,
    head_norm_eps: float,
) -> _Sizes:
    B, S, D = x.shape
    _, NH, DH, _ = c.shape
    head = HeadSizes(DH, DH, core.whole(DH), 1)
    block = mLSTMWeights(*weights).q.shape[-1]
    E = NH * DH
    numbers = (D, E, window.shape[1] + 1, block, centred, residual, D * E >= WIDE)
    return _Sizes(B, S, NH, chunk_size, head, *numbers, norm_eps, head_norm_eps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    x, window, c, _, _, weights, resets, lengths, *ctx.options, _ = inputs
    _, _, c_after, n_after, m, steps, memories = output
    ctx.mark_non_differentiable(m, steps, memories)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(x, window, c, resets, lengths, steps, memories, *weights)
    ctx.shapes = x.shape, c_after.shape, n_after.shape


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    x, window, c, resets, lengths, steps, memories, *weights = ctx.saved_tensors
    dy, dwindow, dc, dn = gradients[:4]  # there is none of m and of the tape
    given = zip((dy, dc, dn), ctx.shapes, strict=True)
    dy, dc, dn = (x.new_zeros(shape) if dx is None else dx for dx, shape in given)
    dx, dwindow, dc, dn, *dweights = _run_backward(
        dy, dwindow, dc, dn, x, window, c, weights, resets, lengths, steps, memories, *ctx.options
    )
    return dx, dwindow, dc, dn, None, dweights, *[None] * 8


_operator = register_op("mlstm_block", _forward, _outputs, device="CPU")
_run_forward = straight(_operator)
_run = register_gradient(_operator, _setup_context, _differentiate, num_results=5)
_run_backward = straight(register_op("mlstm_block_backward", _backward, _gradients, device="CPU"))
