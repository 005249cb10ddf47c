"""mLSTM as the paper writes it, one step after the other: the yardstick of every other implementation.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...state import mLSTMState
from .constants import EPSILON


def mlstm_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState,
    resets: Tensor | None = None,
    *,
    input_gate: str = "exponential",
    normalize: bool = True,
    soft_cap: float | None = None,
) -> tuple[Tensor, mLSTMState]:
    """Beck et al. 2024, equations 19 to 27, with the stabiliser of appendix A."""
    if soft_cap is not None:
        i, f = (soft_cap * torch.tanh(x / soft_cap) for x in (i, f))
    log_i, log_f = F.logsigmoid(i) if input_gate == "sigmoid" else i, F.logsigmoid(f)
    c, n, m = state
    outputs = []
    for t in range(q.shape[1]):
        if resets is not None:
            reset = resets[:, t, None]  # (B, 1)
            c = c.masked_fill(reset[..., None, None], 0.0)
            n = n.masked_fill(reset[..., None], 0.0)
            m = m.masked_fill(reset, -torch.inf)
        h, c, n, m = mlstm_step(q[:, t], k[:, t], v[:, t], log_i[:, t], log_f[:, t], c, n, m, normalize=normalize)
        outputs.append(h)
    return torch.stack(outputs, dim=1), mLSTMState(c, n, m)


def mlstm_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    *,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step, each line a line of the paper."""
    q = q * q.shape[-1] ** -0.5
    m_new = torch.maximum(log_f + m, log_i).detach()  # (B, NH)
    f_gate = torch.exp(log_f + m - m_new)[..., None]
    i_gate = torch.exp(log_i - m_new)[..., None]
    c = f_gate[..., None] * c + i_gate[..., None] * k[..., :, None] * v[..., None, :]  # (B, NH, DK, DV)
    n = f_gate * n + i_gate * k  # (B, NH, DK)
    numerator = torch.einsum("bhkv,bhk->bhv", c, q)
    floor = torch.exp(-m_new)  # the paper's 1, in units of exp(m)
    if not normalize:
        return numerator / floor[..., None], c, n, m_new
    denominator = torch.maximum(torch.einsum("bhk,bhk->bh", n, q).abs(), floor) + EPSILON
    return numerator / denominator[..., None], c, n, m_new
