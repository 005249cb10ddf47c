"""The paper's sLSTM block between its norm and its residual connection: convolution, gates, recurrence, head norm.

Shapes: B batch, S sequence, NH heads, DH head dim, D = NH * DH channels, K convolution kernel size.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import core
from ..ops.slstm.average import from_average, to_average
from ..ops.slstm.compiled import PANEL, to_panels
from ..state import sLSTMState


class _Sizes(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in ("B", "S", "NH", "DH", "K")), ("norm_eps", ctypes.c_float)]


def runs(x: Tensor, head_dim: int) -> bool:
    """Whether the core takes this input and width."""
    return core.runs(x) and head_dim % PANEL == 0


def slstm_mixer(
    x: Tensor, window: Tensor, state: sLSTMState, weights: Sequence[Tensor], resets: Tensor | None, *, norm_eps: float
) -> tuple[Tensor, sLSTMState]:
    """From the norm's output to what is added to the residual stream, and the memory after it.

    Args:
        x: (B, S, D).
        window: the last inputs before these, (B, K - 1, D).
        state: the memory's.
        weights: of convolution (K, D), its bias (D), the input's and the recurrent weight, each (4, NH, DH, DH) as
            [gate, head, out, in], the gates' bias (4, NH, DH), and of the head norm (D).
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        norm_eps: of the head norm.

    Returns:
        (B, S, D) in the dtype of ``x``, and the state after it in float32.
    """
    h0, c0, n0, m0 = (leaf.float() for leaf in state)
    y0, lam0 = to_average(c0, n0, m0.detach())
    tensors = [t.contiguous() for t in (x.float(), window.float(), h0, y0, lam0, m0.detach())]
    weights = [weight.float().contiguous() for weight in weights]
    resets = None if resets is None else resets.contiguous()
    record = torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *weights))
    run = _forward_operator if record or torch.compiler.is_compiling() else _forward
    out, h, y, lam, m, _ = run(*tensors, weights, resets, norm_eps, record)
    c, n = from_average(y, lam, m)
    return out.to(x.dtype), sLSTMState(h, c, n, m)


def _forward(
    x: Tensor,
    window: Tensor,
    h: Tensor,
    y: Tensor,
    lam: Tensor,
    m: Tensor,
    weights: Sequence[Tensor],
    resets: Tensor | None,
    norm_eps: float,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    outputs = _outputs(x, h, record)
    out, *last, tape = outputs
    state = torch.stack((h, y, lam, m))
    after = torch.empty_like(state)
    arrays = (x, window, resets, state, out, tape if record else None, after)
    _call("forward", x, window, h, weights, norm_eps, *arrays)
    for leaf, values in zip(last, after, strict=True):
        leaf.copy_(values)
    return outputs


def _outputs(x: Tensor, h: Tensor, record: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the outputs, the four parts of the state after them, and the tape."""
    tape = x.new_empty((*x.shape[:2], h.shape[1], 5, h.shape[2]) if record else (0,))
    h_out, y, lam, m = (torch.empty_like(h) for _ in range(4))
    return torch.empty_like(x), h_out, y, lam, m, tape


_forward_operator = torch.library.custom_op("xlstm_kernels::slstm_mixer", _forward, mutates_args=())


@_forward_operator.register_fake
def _(x: Tensor, window: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _outputs(x, h, rest[-1])


@torch.library.custom_op("xlstm_kernels::slstm_mixer_backward", mutates_args=())
def _backward_operator(
    x: Tensor,
    window: Tensor,
    h: Tensor,
    weights: Sequence[Tensor],
    resets: Tensor | None,
    tape: Tensor,
    dout: Tensor,
    dh: Tensor,
    dy: Tensor,
    dlam: Tensor,
    norm_eps: float,
) -> list[Tensor]:
    conv_weight, conv_bias, input_weight, _, bias, norm_weight = weights
    _, NH, DH, _ = input_weight.shape
    dx, dwindow = torch.empty_like(x), torch.empty_like(window)
    dstate = torch.stack((dh, dy, dlam))
    dbefore = torch.empty_like(dstate)
    state = h[None].contiguous()
    simple = [w.numel() for w in (conv_weight, conv_bias, bias, norm_weight)]
    blocks = x.new_zeros(torch.get_num_threads(), sum(simple) + NH * 12 * DH * DH)
    arrays = (x, window, resets, state, tape, dout, dstate, dx, dwindow, dbefore, blocks)
    _call("backward", x, window, h, weights, norm_eps, *arrays)
    dconv_weight, dconv_bias, dbias, dnorm, matrices = blocks[0].split([*simple, NH * 12 * DH * DH])
    convolved, hidden, given = matrices.view(NH, 4, DH, 3, DH).permute(3, 1, 0, 2, 4)  # (4, NH, DH, DH) each
    dinput = torch.cat((convolved[:2], given[2:]))
    shaped = (dconv_weight.view_as(conv_weight), dconv_bias, dinput, hidden, dbias.view_as(bias), dnorm)
    return [
        dx,
        dwindow,
        *(d.clone() for d in dbefore),
        *(d.clone(memory_format=torch.contiguous_format) for d in shaped),
    ]


@_backward_operator.register_fake
def _(x: Tensor, window: Tensor, h: Tensor, weights: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    return [torch.empty_like(t) for t in (x, window, h, h, h, *weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, window, h, _, _, _, weights, resets, ctx.norm_eps, _ = inputs
    *_, m, tape = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(m, tape)
    ctx.save_for_backward(x, window, h, resets, tape, *weights)


def _differentiate(ctx: Any, dout: Tensor | None, *dstate: Tensor | None) -> tuple[Any, ...]:
    x, window, h, resets, tape, *weights = ctx.saved_tensors
    dout = torch.zeros_like(x) if dout is None else dout.contiguous()
    dh, dy, dlam = (torch.zeros_like(h) if d is None else d.contiguous() for d in dstate[:3])
    dx, dwindow, dh, dy, dlam, *dweights = _backward_operator(
        x, window, h, weights, resets, tape, dout, dh, dy, dlam, ctx.norm_eps
    )
    return dx, dwindow, dh, dy, dlam, None, dweights, None, None, None


_forward_operator.register_autograd(_differentiate, setup_context=_save)


def _call(
    name: str, x: Tensor, window: Tensor, h: Tensor, weights: Sequence[Tensor], norm_eps: float, *arrays: Tensor | None
) -> None:
    conv_weight, conv_bias, input_weight, recurrent_weight, bias, norm_weight = weights
    B, NH, DH = h.shape
    # What a gate's units weigh: [head, operand, gate and unit]; see csrc/slstm_mixer.h.
    w, r = (weight.permute(1, 3, 0, 2) for weight in (input_weight, recurrent_weight))  # (NH, in, 4, out)
    panels = [
        to_panels(torch.cat((w[:, :, :2], r[:, :, :2]), 1).flatten(2)),
        to_panels(torch.cat((r[:, :, 2:], w[:, :, 2:]), 1).flatten(2)),
        to_panels(_back(input_weight, recurrent_weight)),
    ]
    sizes = _Sizes(B, x.shape[1], NH, DH, window.shape[1] + 1, norm_eps)
    core.call(
        f"xlstm_slstm_mixer_{name}",
        sizes,
        core.pointers((conv_weight, conv_bias, *panels, bias, norm_weight)),
        *arrays,
    )


def _back(input_weight: Tensor, recurrent_weight: Tensor) -> Tensor:
    """From the gates to what they read, convolved input, h and input: (NH, 4 DH, 3 DH)."""
    none = torch.zeros_like(input_weight[:2])
    convolved, given = torch.cat((input_weight[:2], none)), torch.cat((none, input_weight[2:]))
    joined = torch.cat((convolved, recurrent_weight, given), dim=3)  # (4, NH, out, 3 in)
    return joined.transpose(0, 1).flatten(1, 2)
