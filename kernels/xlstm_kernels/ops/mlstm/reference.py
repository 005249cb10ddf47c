"""mLSTM as the paper writes it, one step after the other: the yardstick of every other implementation.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...state import mLSTMState
from .constants import EPSILON


def mlstm_reference(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: mLSTMState, resets: Tensor | None
) -> tuple[Tensor, mLSTMState]:
    """Beck et al. 2024, equations 19 to 27, with the stabiliser of appendix A."""
    c, n, m = state
    outputs = []
    for t in range(q.shape[1]):
        if resets is not None:
            reset = resets[:, t, None]  # (B, 1)
            c = c.masked_fill(reset[..., None, None], 0.0)
            n = n.masked_fill(reset[..., None], 0.0)
            m = m.masked_fill(reset, -torch.inf)
        h, c, n, m = mlstm_step(q[:, t], k[:, t], v[:, t], i[:, t], f[:, t], c, n, m)
        outputs.append(h)
    return torch.stack(outputs, dim=1), mLSTMState(c, n, m)


def mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step, each line a line of the paper."""
    q = q * q.shape[-1] ** -0.5
    logf = F.logsigmoid(f)  # (B, NH)
    m_new = torch.maximum(logf + m, i).detach()
    f_gate = torch.exp(logf + m - m_new)[..., None]
    i_gate = torch.exp(i - m_new)[..., None]
    c = f_gate[..., None] * c + i_gate[..., None] * k[..., :, None] * v[..., None, :]  # (B, NH, DK, DV)
    n = f_gate * n + i_gate * k  # (B, NH, DK)
    numerator = torch.einsum("bhkv,bhk->bhv", c, q)
    floor = torch.exp(-m_new)  # the paper's 1, in units of exp(m)
    denominator = torch.maximum(torch.einsum("bhk,bhk->bh", n, q).abs(), floor) + EPSILON
    return numerator / denominator[..., None], c, n, m_new
