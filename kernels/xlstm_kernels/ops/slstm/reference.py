"""sLSTM as the paper writes it, one step after the other: the yardstick of every other implementation.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...state import sLSTMState


def slstm_reference(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    state: sLSTMState,
    resets: Tensor | None = None,
    *,
    forget_gate: str = "sigmoid",
    recurrent_gradient_clip: float | None = None,
) -> tuple[Tensor, sLSTMState]:
    """Beck et al. 2024, equations 8 to 18."""
    h, c, n, m = state
    outputs = []
    for t in range(gates.shape[1]):
        if resets is not None:
            reset = resets[:, t, None, None]  # (B, 1, 1)
            h, c, n = (x.masked_fill(reset, 0.0) for x in (h, c, n))
            m = m.masked_fill(reset, -torch.inf)
        if recurrent_gradient_clip is not None:
            h = _ClipGradient.apply(h, recurrent_gradient_clip)
        mixed = torch.einsum("gnoi,bni->bgno", recurrent_weight, h)
        h, c, n, m = slstm_step(gates[:, t] + mixed + bias, c, n, m, forget_gate=forget_gate)
        outputs.append(h)
    return torch.stack(outputs, dim=1), sLSTMState(h, c, n, m)


def slstm_step(
    preactivations: Tensor, c: Tensor, n: Tensor, m: Tensor, *, forget_gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step, each line a line of the paper; ``preactivations`` (B, 4, NH, DH)."""
    i, f, z, o = preactivations.unbind(1)
    log_f = f if forget_gate == "exponential" else F.logsigmoid(f)
    m_new = torch.maximum(log_f + m, i).detach()
    i_gate = torch.exp(i - m_new)
    f_gate = torch.exp(log_f + m - m_new)
    c = f_gate * c + i_gate * torch.tanh(z)
    n = f_gate * n + i_gate
    h = torch.sigmoid(o) * c / n
    return h, c, n, m_new


class _ClipGradient(torch.autograd.Function):
    """The same h, whose gradient is bounded entry by entry on the way back."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, bound: float) -> Tensor:
        ctx.bound = bound
        return h.clone()

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, None]:
        return dh.clamp(-ctx.bound, ctx.bound), None
