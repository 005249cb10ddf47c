"""The quantile head: one small network for every step ahead, fed with the seasonal values it continues.

Shapes: B batch, S tokens, H horizon, K candidate values for a step, Q quantiles, D embedding dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Quantile gaps start near softplus(-2) = .13 scales: wide enough to learn from, narrow enough to be close.
INITIAL_GAP = -2.0
DISFAVOUR = 2.0


class QuantileHead(nn.Module):
    """Hidden state and candidate values -> ascending quantiles for every step ahead.

    The middle quantile is a mixture of the candidates (last value, values one or more seasons ago) with weights that
    depend on step and state, plus a correction: the network learns how to deviate from a good base.

    Args:
        embedding_dim: width D of the hidden state.
        horizon: steps ahead H.
        favoured: for each of the K candidates, whether the mixture starts with it.
        num_quantiles: Q, odd: the middle one is the median.
        step_dim: width of the hidden state's message to each single step.
        decoder_dim: hidden width of the network that all steps share.
    """

    def __init__(
        self,
        embedding_dim: int,
        horizon: int,
        *,
        favoured: Sequence[bool],
        num_quantiles: int,
        step_dim: int,
        decoder_dim: int,
    ) -> None:
        super().__init__()
        num_candidates = len(favoured)
        self.steps = nn.Linear(embedding_dim, horizon * step_dim)
        self.context = nn.Linear(embedding_dim, decoder_dim)
        self.inputs = nn.Linear(step_dim + 2 * num_candidates, decoder_dim)
        self.position = nn.Parameter(0.1 * torch.randn(horizon, decoder_dim))
        self.output = nn.Linear(decoder_dim, num_candidates + num_quantiles)
        with torch.no_grad():
            self.output.weight.mul_(0.3)  # training starts close to the mean of the favoured candidates
            self.output.bias.zero_()
            self.output.bias[:num_candidates] -= DISFAVOUR * ~torch.tensor(favoured)

    def forward(self, hidden: Tensor, candidates: Tensor, available: Tensor) -> Tensor:
        """Quantiles (B, S, H, Q) in units of the scale.

        Args:
            hidden: (B, S, D).
            candidates: (B, S, H, K) in units of the scale.
            available: bool (B, S, H, K); at least one candidate of every step must be.
        """
        message = self.steps(hidden).unflatten(-1, (len(self.position), -1))  # (B, S, H, step_dim)
        inputs = self.inputs(torch.cat([message, candidates, available.to(candidates.dtype)], -1))
        z = F.gelu(inputs + self.context(hidden).unsqueeze(-2) + self.position)
        gates, raw = self.output(z).split([candidates.shape[-1], self.output.out_features - candidates.shape[-1]], -1)
        weights = gates.masked_fill(~available, -torch.inf).softmax(-1)
        return (weights * candidates).sum(-1, keepdim=True) + ascending(raw)


def ascending(raw: Tensor) -> Tensor:
    """Unbounded numbers (..., Q), Q odd, to quantiles that never cross: the middle one, positive gaps around it.

    >>> bool((ascending(torch.randn(3, 5)).diff() > 0).all())
    True
    """
    middle = raw.shape[-1] // 2
    median, gaps = raw[..., middle : middle + 1], F.softplus(raw + INITIAL_GAP)
    below = median - gaps[..., :middle].flip(-1).cumsum(-1).flip(-1)
    above = median + gaps[..., middle + 1 :].cumsum(-1)
    return torch.cat([below, median, above], -1)
