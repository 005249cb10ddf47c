"""The paper's mLSTM block between its two projections: convolution, maps, gates, memory, head norm, skip, output gate.

Shapes: B batch, S sequence, E inner dim, NH heads, DH head dim, K convolution kernel size.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import core
from ..ops.mlstm.compiled import HeadSizes, chunk_size, memory_floats, whole
from ..state import mLSTMState

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
    up: Tensor, window: Tensor, state: mLSTMState, weights: Sequence[Tensor], resets: Tensor | None, *, norm_eps: float
) -> tuple[Tensor, mLSTMState]:
    """From the up-projection's output to what the down-projection reads, and the memory after it.

    Args:
        up: the memory's input beside the output gate's, (B, S, 2 E).
        window: the memory's last inputs before these, (B, K - 1, E).
        state: the memory's.
        weights: of convolution (K, E), its bias (E), maps of q, k and v (blocks, out, in), gates (2 NH, 3 E), their
            bias (2 NH), head norm (E) and skip (E).
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        norm_eps: of the head norm.

    Returns:
        (B, S, E) in the dtype of ``up``, and the state after it in float32.
    """
    tensors = [x.float().contiguous() for x in (up, window, *state)]
    weights = [weight.float().contiguous() for weight in weights]
    resets = None if resets is None else resets.contiguous()
    record = torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *weights))
    # Without gradients the call is direct: the dispatcher's way to an operator takes longer than a step.
    run = _forward_operator if record or torch.compiler.is_compiling() else _forward
    y, c, n, m, *_ = run(*tensors, weights, resets, norm_eps, record)
    return y.to(up.dtype), mLSTMState(c, n, m)


def _forward(
    up: Tensor,
    window: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    weights: Sequence[Tensor],
    resets: Tensor | None,
    norm_eps: float,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    outputs = _outputs(up, c, n, m, record)
    y, c_out, n_out, m_out, *kept = outputs
    kept = kept if record else [None, None]
    _call("forward", up, window, c, weights, norm_eps, up, window, resets, c, n, m, y, *kept, c_out, n_out, m_out)
    return outputs


def _outputs(
    up: Tensor, c: Tensor, n: Tensor, m: Tensor, record: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the outputs, the state after them, and what the way back keeps: h with normalisers, and memories."""
    B, S, E = up.shape[0], up.shape[1], up.shape[2] // 2
    NH, DH = c.shape[1], c.shape[2]
    L = chunk_size(S, DH)
    chunks = -(-S // L)
    tape = up.new_empty((B, chunks * L * (E + 2 * NH)) if record else (0,))
    memories = up.new_empty((B, NH, chunks + 1, memory_floats(DH, DH)) if record else (0,))
    return up.new_empty(B, S, E), torch.empty_like(c), torch.empty_like(n), torch.empty_like(m), tape, memories


_forward_operator = torch.library.custom_op("xlstm_kernels::mlstm_mixer", _forward, mutates_args=())


@_forward_operator.register_fake
def _(up: Tensor, window: Tensor, c: Tensor, n: Tensor, m: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _outputs(up, c, n, m, rest[-1])


@torch.library.custom_op("xlstm_kernels::mlstm_mixer_backward", mutates_args=())
def _backward_operator(
    up: Tensor,
    window: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    resets: Tensor | None,
    tape: Tensor,
    memories: Tensor,
    dy: Tensor,
    dc: Tensor,
    dn: Tensor,
    norm_eps: float,
) -> list[Tensor]:
    given = [torch.empty_like(x) for x in (up, window, dc, dn)]
    dup, dwindow, dc_before, dn_before = given
    sizes = [weight.numel() for weight in weights]
    gates, columns = weights[GATE_WEIGHT].shape
    del sizes[GATE_WEIGHT]  # in mixer_gradients it comes last, its rows filled up to whole vectors
    blocks = up.new_zeros(torch.get_num_threads(), sum(sizes) + gates * whole(columns))
    arrays = (up, window, resets, tape, memories, dy, dc, dn, dup, dwindow, dc_before, dn_before, blocks)
    _call("backward", up, window, c, weights, norm_eps, *arrays)
    *parts, dgates = blocks[0].split([*sizes, gates * whole(columns)])
    parts.insert(GATE_WEIGHT, dgates.view(gates, -1)[:, :columns])
    return [*given, *(part.reshape(weight.shape).clone() for part, weight in zip(parts, weights, strict=True))]


@_backward_operator.register_fake
def _(up: Tensor, window: Tensor, c: Tensor, weights: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    dc, dn = rest[-3:-1]
    return [torch.empty_like(x) for x in (up, window, dc, dn, *weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    up, window, c, n, _, weights, resets, ctx.norm_eps, _ = inputs
    *_, m, tape, memories = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(m, tape, memories)
    ctx.save_for_backward(up, window, c, n, resets, tape, memories, *weights)


def _differentiate(ctx: Any, dy: Tensor | None, dc: Tensor | None, dn: Tensor | None, *_: Any) -> tuple[Any, ...]:
    up, window, c, n, resets, tape, memories, *weights = ctx.saved_tensors
    dy = up.new_zeros(*up.shape[:2], up.shape[2] // 2) if dy is None else dy.contiguous()
    dc, dn = (torch.zeros_like(x) if d is None else d.contiguous() for d, x in ((dc, c), (dn, n)))
    dup, dwindow, dc, dn, *dweights = _backward_operator(
        up, window, c, weights, resets, tape, memories, dy, dc, dn, ctx.norm_eps
    )
    return dup, dwindow, dc, dn, None, dweights, None, None, None


_forward_operator.register_autograd(_differentiate, setup_context=_save)


def _call(
    name: str, up: Tensor, window: Tensor, c: Tensor, weights: Sequence[Tensor], norm_eps: float, *arrays: Tensor | None
) -> None:
    B, S, E = up.shape[0], up.shape[1], up.shape[2] // 2
    NH, DH = c.shape[1], c.shape[2]
    block = weights[2].shape[-1]
    sizes = _Sizes(
        B, S, NH, chunk_size(S, DH), HeadSizes(DH, DH, whole(DH), 1), E, window.shape[1] + 1, block, norm_eps
    )
    core.call(f"xlstm_mixer_{name}", sizes, core.pointers(weights), *arrays)
