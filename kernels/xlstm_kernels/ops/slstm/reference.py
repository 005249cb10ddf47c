"""sLSTM as the paper writes it, one step after the other: the yardstick of every other implementation.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...state import sLSTMState


def slstm_reference(
    gates: Tensor, recurrent_weight: Tensor, bias: Tensor, state: sLSTMState, resets: Tensor | None
) -> tuple[Tensor, sLSTMState]:
    """Beck et al. 2024, equations 8 to 18."""
    h, c, n, m = state
    outputs = []
    for t in range(gates.shape[1]):
        if resets is not None:
            reset = resets[:, t, None, None]  # (B, 1, 1)
            h, c, n = (x.masked_fill(reset, 0.0) for x in (h, c, n))
            m = m.masked_fill(reset, -torch.inf)
        mixed = torch.einsum("gnoi,bni->bgno", recurrent_weight, h)
        h, c, n, m = slstm_step(gates[:, t] + mixed + bias, c, n, m)
        outputs.append(h)
    return torch.stack(outputs, dim=1), sLSTMState(h, c, n, m)


def slstm_step(preactivations: Tensor, c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step, each line a line of the paper; ``preactivations`` (B, 4, NH, DH)."""
    i, f, z, o = preactivations.unbind(1)
    logf = F.logsigmoid(f)
    m_new = torch.maximum(logf + m, i).detach()
    i_gate = torch.exp(i - m_new)
    f_gate = torch.exp(logf + m - m_new)
    c = f_gate * c + i_gate * torch.tanh(z)
    n = f_gate * n + i_gate
    h = torch.sigmoid(o) * c / n
    return h, c, n, m_new
