"""The paper's mLSTM block between its two projections: convolution, maps, gates, memory, head norm, skip, output gate.

Shapes: B batch, S sequence, E inner dim, NH heads, DH head dim, K convolution kernel size.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import buffers, core
from ..ops.mlstm.compiled import HeadSizes, default_chunk_size, memory_floats
from ..ops.registration import must_record, register_gradient, register_op
from ..state import mLSTMState
from .checks import check_memory

HISTORY = 16  # as in csrc/core.c: the longest that a convolution looks back
GATE_WEIGHT = 5  # its place among the weights


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "S", "NH", "chunk")),
        ("head", HeadSizes),
        *((name, ctypes.c_int64) for name in ("E", "K", "block")),
        ("norm_eps", ctypes.c_float),
    ]


def runs(up: Tensor, kernel_size: int) -> bool:
    """Whether the core takes this input and convolution."""
    return core.runs(up) and kernel_size <= HISTORY + 1


def mlstm_mixer(
    up: Tensor,
    window: Tensor,
    state: mLSTMState,
    weights: Sequence[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    *,
    norm_eps: float,
) -> tuple[Tensor, mLSTMState]:
    """From the up-projection's output to what the down-projection reads, and the memory after it.

    Args:
        up: the memory's input beside the output gate's, (B, S, 2 E).
        window: the memory's last inputs before these, (B, K - 1, E).
        state: the memory's.
        weights: of convolution (K, E), its bias (E), maps of q, k and v (blocks, out, in), gates (2 NH, 3 E), their
            bias (2 NH), head norm (E) and skip (E).
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        lengths: integers (B,); row b ends after its first ``lengths[b]`` steps, beyond them its outputs are zero.
        norm_eps: of the head norm.

    Returns:
        (B, S, E) in the dtype of ``up``, and the state after it in float32.

    Raises:
        ValueError: the state does not fit ``up`` and the weights.
        TypeError: it is not float32.
    """
    E, NH = up.shape[2] // 2, len(weights[GATE_WEIGHT]) // 2
    check_memory(up, state, ((NH, E // NH, E // NH), (NH, E // NH), (NH,)))
    given = (up, window, state.c, state.n, state.m.detach())
    x, window, c, n, m, *plain = (tensor.float().contiguous() for tensor in (*given, *weights))
    resets = None if resets is None else resets.contiguous()
    lengths = None if lengths is None else lengths.long().contiguous()
    record = must_record(x, window, c, n, *plain)
    # Without gradients the call is direct: the dispatcher's way to an operator takes longer than a step.
    run = _operator if record or torch.compiler.is_compiling() else _forward
    y, c, n, m, *_ = run(x, window, c, n, m, plain, resets, lengths, norm_eps, record)
    return y.to(up.dtype), mLSTMState(c, n, m)


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # y, c, n and m, then the tape


def _outputs(
    up: Tensor,
    window: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    norm_eps: float,
    record: bool,
) -> _Outputs:
    """Room for the outputs; the tape holds h with each step's normaliser and m, and the memories between chunks."""
    B, S, E = up.shape[0], up.shape[1], up.shape[2] // 2
    NH, DH = c.shape[1], c.shape[2]
    L = default_chunk_size(S, DH)
    chunks = (S + L - 1) // L
    steps = buffers.empty((B, chunks * L * (E + 2 * NH)) if record else (0,), like=up)
    memories = buffers.empty((B, NH, chunks + 1, memory_floats(DH, DH)) if record else (0,), like=up)
    c, n, m = (x.new_empty(x.shape) for x in (c, n, m))
    return buffers.empty((B, S, E), like=up), c, n, m, steps, memories


def _forward(
    up: Tensor,
    window: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    norm_eps: float,
    record: bool,
) -> _Outputs:
    outputs = _outputs(up, window, c, n, m, weights, resets, lengths, norm_eps, record)
    y, *last, steps, memories = outputs
    tape = (steps, memories) if record else (None, None)
    sizes = _sizes(up, window, c, weights, norm_eps)
    core.call("xlstm_mlstm_mixer_forward", sizes, weights, up, window, resets, lengths, c, n, m, y, *tape, *last)
    return outputs


def _backward(
    dy: Tensor,
    dc: Tensor,
    dn: Tensor,
    up: Tensor,
    window: Tensor,
    c: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    steps: Tensor,
    memories: Tensor,
    norm_eps: float,
) -> list[Tensor]:
    gradients = [buffers.empty(x.shape, like=x) for x in (up, window, dc, dn)]
    shapes = [weight.shape for weight in weights]
    gates, columns = shapes.pop(GATE_WEIGHT)
    shapes.append(
        torch.Size((gates, core.whole(columns)))
    )  # in mlstm_mixer_gradients it comes last, in rows of whole vectors
    blocks = up.new_zeros(torch.get_num_threads(), sum(shape.numel() for shape in shapes))
    given = (x.contiguous() for x in (dy, dc, dn))
    sizes = _sizes(up, window, c, weights, norm_eps)
    arrays = (up, window, resets, lengths, steps, memories, *given, *gradients, blocks)
    core.call("xlstm_mlstm_mixer_backward", sizes, weights, *arrays)
    parts = blocks[0].split([shape.numel() for shape in shapes])
    *dweights, dgates = (part.view(shape).clone() for part, shape in zip(parts, shapes, strict=True))
    dweights.insert(GATE_WEIGHT, dgates[:, :columns].contiguous())
    return [*gradients, *dweights]


def _gradients(
    dy: Tensor,
    dc: Tensor,
    dn: Tensor,
    up: Tensor,
    window: Tensor,
    c: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    steps: Tensor,
    memories: Tensor,
    norm_eps: float,
) -> list[Tensor]:
    """Room for the gradients of up, window, c, n and the weights."""
    return [x.new_empty(x.shape) for x in (up, window, dc, dn, *weights)]


def _sizes(up: Tensor, window: Tensor, c: Tensor, weights: Sequence[Tensor], norm_eps: float) -> _Sizes:
    B, S, E = up.shape[0], up.shape[1], up.shape[2] // 2
    NH, DH = c.shape[1], c.shape[2]
    block = weights[2].shape[-1]
    head = HeadSizes(DH, DH, core.whole(DH), 1)
    return _Sizes(B, S, NH, default_chunk_size(S, DH), head, E, window.shape[1] + 1, block, norm_eps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    up, window, c, _, _, weights, resets, lengths, ctx.norm_eps, _ = inputs
    y, c_after, n_after, m, steps, memories = output
    ctx.mark_non_differentiable(m, steps, memories)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(up, window, c, resets, lengths, steps, memories, *weights)
    ctx.shapes = y.shape, c_after.shape, n_after.shape


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    up, window, c, resets, lengths, steps, memories, *weights = ctx.saved_tensors
    given = zip(gradients, ctx.shapes, strict=False)  # of y, c, n; there is none of m and of the tape
    dy, dc, dn = (up.new_zeros(shape) if dx is None else dx for dx, shape in given)
    dup, dwindow, dc, dn, *dweights = _backward_operator(
        dy, dc, dn, up, window, c, weights, resets, lengths, steps, memories, ctx.norm_eps
    )
    return dup, dwindow, dc, dn, None, dweights, None, None, None, None


_operator = register_op("mlstm_mixer", _forward, _outputs, device="CPU")
_backward_operator = register_op("mlstm_mixer_backward", _backward, _gradients, device="CPU")
register_gradient(_operator, _setup_context, _differentiate)
