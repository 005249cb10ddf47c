"""The decoder: one small network for every step ahead, fed with the seasonal values that it continues.

Shapes: B batch, S tokens, H horizon, K candidate values for a step, E covariate channels, D embedding dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """Hidden state, candidate values and covariates -> a base value and raw outputs for every step ahead.

    The base is a mixture of the candidates (last value, values one or more seasons ago) with weights that depend on
    step and state: the network learns how to deviate from a good base.

    Args:
        embedding_dim: width D of the hidden state, static covariates included.
        horizon: steps ahead H.
        preferences: for each of the K candidates, the logarithm of the weight that it starts with beside the others.
        num_outputs: raw outputs of a step.
        num_covariates: channels E that each step ahead brings.
        step_dim: width of the hidden state's message to each single step.
        decoder_dim: hidden width of the network that all steps share.
    """

    def __init__(
        self,
        embedding_dim: int,
        horizon: int,
        *,
        preferences: Sequence[float],
        num_outputs: int,
        num_covariates: int,
        step_dim: int,
        decoder_dim: int,
    ) -> None:
        super().__init__()
        num_candidates = len(preferences)
        self.steps = nn.Linear(embedding_dim, horizon * step_dim)
        self.context = nn.Linear(embedding_dim, decoder_dim)
        self.inputs = nn.Linear(step_dim + 2 * num_candidates + num_covariates, decoder_dim)
        self.position = nn.Parameter(0.1 * torch.randn(horizon, decoder_dim))
        self.output = nn.Linear(decoder_dim, num_candidates + num_outputs)
        with torch.no_grad():
            self.output.weight.mul_(0.3)  # training starts close to the mean of the candidates preferred
            self.output.bias.zero_()
        self.prefer(torch.tensor(preferences))

    @torch.no_grad()
    def prefer(self, preferences: Tensor) -> None:
        """Start from these logarithms of the candidates' weights (K,)."""
        self.output.bias[: len(preferences)] = preferences

    @torch.no_grad()
    def begin(self, preferences: Tensor, outputs: Tensor) -> None:
        """Answer every state alike: with these logarithms of the candidates' weights (K,), and these raw outputs."""
        self.output.weight.zero_()
        self.output.bias.copy_(torch.cat([preferences, outputs]))

    def forward(
        self, hidden: Tensor, candidates: Tensor, available: Tensor, covariates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The base (B, S, H, 1) and the raw outputs (B, S, H, num_outputs), in units of the scale.

        Args:
            hidden: (B, S, D).
            candidates: (B, S, H, K) in units of the scale.
            available: bool (B, S, H, K); at least one candidate of every step must be.
            covariates: (B, S, H, E).
        """
        message = self.steps(hidden).unflatten(-1, (len(self.position), -1))  # (B, S, H, step_dim)
        inputs = self.inputs(torch.cat([message, candidates, available.to(candidates.dtype), covariates], -1))
        z = F.gelu(inputs + self.context(hidden).unsqueeze(-2) + self.position)
        gates, raw = self.output(z).split([candidates.shape[-1], self.output.out_features - candidates.shape[-1]], -1)
        weights = gates.masked_fill(~available, -torch.inf).softmax(-1)
        return (weights * candidates).sum(-1, keepdim=True), raw
