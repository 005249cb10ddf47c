"""The paper's sLSTM block between its norm and its residual connection: convolution, gates, recurrence, head norm.

Shapes: B batch, S sequence, NH heads, DH head dim, D = NH * DH channels, K convolution kernel size.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import buffers, core
from ..ops.registration import must_record, register_gradient, register_op, straight
from ..ops.slstm.average import from_average, to_average
from ..state import sLSTMState
from .checks import check_memory


class _Sizes(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in ("B", "S", "NH", "DH", "K")), ("norm_eps", ctypes.c_float)]


def runs(x: Tensor, head_dim: int) -> bool:
    """Whether the core takes this input and width."""
    return core.runs(x) and head_dim % core.PANEL == 0


def slstm_mixer(
    x: Tensor,
    window: Tensor,
    state: sLSTMState,
    weights: Sequence[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    *,
    norm_eps: float,
) -> tuple[Tensor, sLSTMState]:
    """From the norm's output to what is added to the residual stream, and the memory after it.

    Args:
        x: (B, S, D).
        window: the last inputs before these, (B, K - 1, D).
        state: the memory's.
        weights: of convolution (K, D), its bias (D), the input's and the recurrent weight, each (4, NH, DH, DH) as
            [gate, head, out, in], the gates' bias (4, NH, DH), and of the head norm (D).
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        lengths: integers (B,); row b ends after its first ``lengths[b]`` steps, beyond them its outputs are zero.
        norm_eps: of the head norm.

    Returns:
        (B, S, D) in the dtype of ``x``, and the state after it in float32.

    Raises:
        ValueError: the state does not fit ``x`` and the weights.
        TypeError: it is not float32.
    """
    check_memory(x, state, sLSTMState, (weights[2].shape[1:3],) * 4)
    m_before = state.m.detach().float()
    given = (x, window, state.h, *to_average(state.c.float(), state.n.float(), m_before, relative=False), m_before)
    x32, window, h, y, lam, m, *plain = (tensor.float().contiguous() for tensor in (*given, *weights))
    resets = None if resets is None else resets.contiguous()
    lengths = None if lengths is None else lengths.long().contiguous()
    record = must_record(x32, window, h, y, lam, *plain)
    run = _run if record else _run_forward
    out, h, y, lam, m, *_ = run(x32, window, h, y, lam, m, plain, resets, lengths, norm_eps, record)
    return out.to(x.dtype), sLSTMState(h, *from_average(y, lam, m, relative=False), m)


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # the output, h, y, lam and m, then the tape


def _outputs(
    x: Tensor,
    window: Tensor,
    h: Tensor,
    y: Tensor,
    lam: Tensor,
    m: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    norm_eps: float,
    record: bool,
) -> _Outputs:
    """Room for the outputs; the tape holds z, o, alpha, y and the slope of log f."""
    tape = buffers.empty((*x.shape[:2], h.shape[1], 5, h.shape[2]) if record else (0,), like=x)
    h, y, lam, m = (leaf.new_empty(leaf.shape) for leaf in (h, y, lam, m))
    return buffers.empty(x.shape, like=x), h, y, lam, m, tape


def _forward(
    x: Tensor,
    window: Tensor,
    h: Tensor,
    y: Tensor,
    lam: Tensor,
    m: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    norm_eps: float,
    record: bool,
) -> _Outputs:
    weights = list(core.contiguous(*weights))
    x, window, resets, lengths = core.contiguous(x, window, resets, lengths)
    outputs = _outputs(x, window, h, y, lam, m, weights, resets, lengths, norm_eps, record)
    out, *last, tape = outputs
    state = torch.stack((h, y, lam, m))
    after = torch.empty_like(state)
    arrays = (x, window, resets, lengths, state, out, tape if record else None, after)
    core.call("xlstm_slstm_mixer_forward", _sizes(x, window, h, norm_eps), _packed(weights), *arrays)
    for leaf, values in zip(last, after, strict=True):
        leaf.copy_(values)
    return outputs


def _backward(
    dout: Tensor,
    dh: Tensor,
    dy: Tensor,
    dlam: Tensor,
    x: Tensor,
    window: Tensor,
    h: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    tape: Tensor,
    norm_eps: float,
) -> list[Tensor]:
    weights = list(core.contiguous(*weights))
    x, window, h, resets, lengths, dout = core.contiguous(x, window, h, resets, lengths, dout)
    conv_weight, conv_bias, input_weight, _, bias, norm_weight = weights
    _, NH, DH, _ = input_weight.shape
    dx, dwindow = buffers.empty(x.shape, like=x), torch.empty_like(window)
    dstate = torch.stack((dh, dy, dlam))
    dbefore = torch.empty_like(dstate)
    shapes = [*(w.shape for w in (conv_weight, conv_bias, bias, norm_weight)), torch.Size((NH, 4, DH, 3, DH))]
    numbers = [shape.numel() for shape in shapes]
    blocks = x.new_zeros(torch.get_num_threads(), sum(numbers))
    arrays = (x, window, resets, lengths, h, tape, dout, dstate, dx, dwindow, dbefore, blocks)
    core.call("xlstm_slstm_mixer_backward", _sizes(x, window, h, norm_eps), _packed(weights), *arrays)
    parts = blocks[0].split(numbers)
    dconv, dconv_bias, dbias, dnorm, matrices = (p.view(shape) for p, shape in zip(parts, shapes, strict=True))
    convolved, hidden, given = matrices.permute(3, 1, 0, 2, 4)  # (4, NH, DH, DH) each
    dinput = torch.cat((convolved[:2], given[2:]))
    shared = (*dbefore, dconv, dconv_bias, dinput, hidden, dbias, dnorm)
    return [dx, dwindow, *(d.clone(memory_format=torch.contiguous_format) for d in shared)]


def _gradients(
    dout: Tensor,
    dh: Tensor,
    dy: Tensor,
    dlam: Tensor,
    x: Tensor,
    window: Tensor,
    h: Tensor,
    weights: list[Tensor],
    *rest: object,
) -> list[Tensor]:
    """Room for the gradients of x, window, h, y, lam and the weights."""
    return [leaf.new_empty(leaf.shape) for leaf in (x, window, h, h, h, *weights)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    x, window, h, _, _, _, weights, resets, lengths, ctx.norm_eps, _ = inputs
    *_, m, tape = output
    ctx.mark_non_differentiable(m, tape)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(x, window, h, resets, lengths, tape, *weights)


def _differentiate(ctx: Any, dout: Tensor | None, *dstate: Tensor | None) -> tuple[Any, ...]:
    x, window, h, resets, lengths, tape, *weights = ctx.saved_tensors
    dout = torch.zeros_like(x) if dout is None else dout
    dh, dy, dlam = (torch.zeros_like(h) if d is None else d for d in dstate[:3])
    dx, dwindow, dh, dy, dlam, *dweights = _run_backward(
        dout, dh, dy, dlam, x, window, h, weights, resets, lengths, tape, ctx.norm_eps
    )
    return dx, dwindow, dh, dy, dlam, None, dweights, None, None, None, None


_operator = register_op("slstm_mixer", _forward, _outputs, device="CPU")
_run_forward = straight(_operator)
_run = register_gradient(_operator, _setup_context, _differentiate, num_results=5)
_run_backward = straight(register_op("slstm_mixer_backward", _backward, _gradients, device="CPU"))


def _sizes(x: Tensor, window: Tensor, h: Tensor, norm_eps: float) -> _Sizes:
    return _Sizes(len(x), x.shape[1], h.shape[1], h.shape[2], window.shape[1] + 1, norm_eps)


def _packed(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The fields of ``slstm_mixer_weights``; what a gate's units weigh lies in panels, see csrc/slstm_mixer.h."""
    conv_weight, conv_bias, input_weight, recurrent_weight, bias, norm_weight = weights
    w, r = (weight.permute(1, 3, 0, 2) for weight in (input_weight, recurrent_weight))  # (NH, in, 4, out)
    if_panels = core.to_panels(torch.cat((w[:, :, :2], r[:, :, :2]), 1).flatten(2))
    zo_panels = core.to_panels(torch.cat((r[:, :, 2:], w[:, :, 2:]), 1).flatten(2))
    back_panels = core.to_panels(_back(input_weight, recurrent_weight))
    return conv_weight, conv_bias, if_panels, zo_panels, back_panels, bias, norm_weight


def _back(input_weight: Tensor, recurrent_weight: Tensor) -> Tensor:
    """From the gates to what they read, convolved input, h and input: (NH, 4 DH, 3 DH)."""
    none = torch.zeros_like(input_weight[:2])
    convolved, given = torch.cat((input_weight[:2], none)), torch.cat((none, input_weight[2:]))
    joined = torch.cat((convolved, recurrent_weight, given), dim=3)  # (4, NH, out, 3 in)
    return joined.transpose(0, 1).flatten(1, 2)
