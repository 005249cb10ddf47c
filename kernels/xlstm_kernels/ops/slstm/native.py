"""sLSTM in PyTorch: one loop over the steps on the memory as an average, and a backward pass written by hand.

Shapes: B batch, S sequence, NH heads, DH head dim; inside the loop time and heads lead: (S, NH, B, DH).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ...state import sLSTMState
from ..checks import check_dtypes
from .average import from_average, to_average


def slstm_recurrent(
    gates: Tensor, recurrent_weight: Tensor, bias: Tensor, state: sLSTMState, resets: Tensor | None
) -> tuple[Tensor, sLSTMState]:
    """The contract of ``slstm``."""
    dtype = check_dtypes({"gates": gates, "recurrent_weight": recurrent_weight})
    preactivations = (gates + bias).to(dtype).permute(1, 3, 0, 2, 4)  # (S, NH, B, 4, DH)
    h0, c0, n0, m0 = (x.to(dtype).transpose(0, 1) for x in state)  # (NH, B, DH)
    h, y, lam, m = _Recurrence.apply(
        preactivations,
        recurrent_weight.to(dtype),
        h0,
        *to_average(c0, n0, m0.detach()),
        m0.detach(),
        resets,
        torch.is_grad_enabled(),
    )
    c, n = from_average(y, lam, m)
    last = sLSTMState(*(x.transpose(0, 1) for x in (h[-1].clone(), c, n, m)))  # a view would keep all of h alive
    return h.permute(2, 0, 1, 3).to(gates.dtype), last


class _Recurrence(torch.autograd.Function):
    """(S, NH, B, 4, DH) pre-activations to h (S, NH, B, DH) and the last y, lam, m."""

    @staticmethod
    def forward(
        ctx: Any,
        preactivations: Tensor,
        recurrent_weight: Tensor,
        h: Tensor,
        y: Tensor,
        lam: Tensor,
        m: Tensor,
        resets: Tensor | None,
        record: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, NH, B, _, DH = preactivations.shape
        weight = recurrent_weight.permute(1, 3, 0, 2).reshape(NH, DH, 4 * DH)  # [head, in, (gate, out)]
        reset_steps = [None] * len(preactivations) if resets is None else resets.t()[:, None, :, None].unbind(0)
        tape, outputs = [], []
        for step, reset in zip(preactivations.unbind(0), reset_steps, strict=True):
            if reset is not None:
                h, y = h.masked_fill(reset, 0.0), y.masked_fill(reset, 0.0)
                lam, m = lam.masked_fill(reset, -torch.inf), m.masked_fill(reset, -torch.inf)
            h_before = h
            i, f, z, o = torch.baddbmm(step.reshape(NH, B, 4 * DH), h, weight).chunk(4, dim=-1)
            logf, z, o = F.logsigmoid(f), torch.tanh(z), torch.sigmoid(o)
            x = i - logf - lam
            alpha = torch.sigmoid(x)
            lam = i - F.logsigmoid(x)
            y = torch.lerp(y, z, alpha)
            h = o * y
            m = torch.maximum(logf + m, i)
            outputs.append(h)
            if record:
                tape.append((h_before, y, z, o, alpha, f))
        stacked = torch.stack(outputs)
        if record and any(ctx.needs_input_grad):
            ctx.save_for_backward(recurrent_weight, stacked, *(torch.stack(parts) for parts in zip(*tape, strict=True)))
            ctx.resets = resets
        ctx.mark_non_differentiable(m)
        return stacked, y, lam, m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, dy: Tensor, dlam: Tensor, _dm: Tensor) -> tuple[Tensor | None, ...]:
        recurrent_weight, h, h_before, y, z, o, alpha, f = ctx.saved_tensors
        S, NH, B, DH = h.shape
        weight = recurrent_weight.permute(1, 0, 2, 3).reshape(NH, 4 * DH, DH)  # [head, (gate, out), in]
        keep_steps = [None] * S if ctx.resets is None else (~ctx.resets).t()[:, None, :, None].to(h.dtype).unbind(0)
        # All that depends on time alone is worked in one go; the loop keeps only what is recurrent.
        factors = (dh, o, alpha, z - y, torch.sigmoid(-f), alpha * (1 - z * z), h * (1 - o), 1 - alpha)
        steps = list(zip(*(factor.unbind(0) for factor in factors), keep_steps, strict=True))
        dsteps = torch.empty(S, NH, B, 4, DH, dtype=h.dtype, device=h.device)
        p, q, mixed = dy, dlam, torch.zeros_like(dy)
        for t in reversed(range(S)):
            dh_t, o_t, alpha_t, toward, f_slope, z_slope, o_slope, forget, keep = steps[t]
            g = dh_t + mixed
            p = torch.addcmul(p, g, o_t)
            di = alpha_t * torch.addcmul(q, p, toward)
            q = q - di
            torch.stack((di, q * f_slope, p * z_slope, g * o_slope), dim=2, out=dsteps[t])
            p = p * forget
            mixed = torch.bmm(dsteps[t].view(NH, B, 4 * DH), weight)
            if keep is not None:
                p, q, mixed = p * keep, q * keep, mixed * keep
        dweight = torch.einsum("snbgo,snbi->gnoi", dsteps, h_before)
        return dsteps, dweight, mixed, p, q, None, None, None
