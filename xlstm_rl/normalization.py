"""Running scales of observations and returns, so that a policy learns alike in any units.

Shapes: M samples, F features.
"""

from typing import Any

import torch as th
from torch import nn

CLIP = 10.0  # standard deviations, as in SB3's VecNormalize
ROUNDING = 1e-6  # of float32 numbers and what is computed from them, relative
FORGETTING = 0.5  # returns grow as the policy improves: their scale is that of the newest few rollouts


class FeatureNorm(nn.Module):
    """Standardises features (M, F) with the mean and deviation of all that was observed; at first it only clips.

    Args:
        features_dim: F.
    """

    mean: th.Tensor
    var: th.Tensor
    count: th.Tensor
    shift: th.Tensor
    scale: th.Tensor

    def __init__(self, features_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(features_dim, dtype=th.float64))
        self.register_buffer("var", th.ones(features_dim, dtype=th.float64))
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        # What forward needs of these, as it needs it: at every step of a rollout
        self.register_buffer("shift", th.zeros(features_dim), persistent=False)
        self.register_buffer("scale", th.ones(features_dim), persistent=False)
        self.register_load_state_dict_post_hook(_follow)

    @th.no_grad()
    def observe(self, features: th.Tensor) -> None:
        """Merge the moments of ``features`` into those of all before (Chan et al. 1979)."""
        batch = features.double()
        total = self.count + len(batch)
        shift = batch.mean(0) - self.mean
        squares = self.var * self.count + batch.var(0, unbiased=False) * len(batch)
        self.var.copy_((squares + shift.square() * self.count * len(batch) / total) / total)
        self.mean.add_(shift * len(batch) / total)
        self.count.copy_(total)
        _follow(self)

    def forward(self, features: th.Tensor) -> th.Tensor:
        return ((features - self.shift) * self.scale).clamp(-CLIP, CLIP)


def _follow(norm: Any, *_: Any) -> None:
    """Bring shift and scale to where the moments are; a feature that never moved, but by rounding, is only centred."""
    norm.shift.copy_(norm.mean)
    moved = norm.var > (ROUNDING * norm.mean).square() + th.finfo(th.float32).tiny
    norm.scale.copy_(th.where(moved, norm.var, 1.0).rsqrt())


class ReturnScale(nn.Module):
    """Keeps the critic's last layer in units of the returns' deviation (PopArt, van Hasselt et al. 2016); at first 1.

    The critic predicts values of any size with weights of ordinary size, and its loss, divided by the square of the
    scale, does not drown the actor's in the memory that both share.
    """

    mean: th.Tensor
    deviation: th.Tensor
    count: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(()))
        self.register_buffer("deviation", th.ones(()))
        self.register_buffer("count", th.zeros(()))

    @th.no_grad()
    def observe(self, returns: th.Tensor, last_layer: nn.Linear) -> None:
        """Follow the scale of ``returns`` and change ``last_layer`` so that no predicted value changes."""
        mean, variance = returns.mean(), returns.var(unbiased=False)
        if self.count > 0:
            # The moments of a mixture: a jump of the mean widens the scale as well.
            jump = FORGETTING * (1 - FORGETTING) * (mean - self.mean).square()
            variance = variance.lerp(self.deviation.square(), FORGETTING) + jump
            mean = mean.lerp(self.mean, FORGETTING)
        deviation = variance.sqrt()
        if deviation < 1e-8:  # no reward yet: nothing to learn a scale from
            return
        last_layer.weight.mul_(self.deviation / deviation)
        last_layer.bias.copy_((self.deviation * last_layer.bias + self.mean - mean) / deviation)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.count.add_(1)

    def forward(self, values: th.Tensor) -> th.Tensor:
        return th.addcmul(self.mean, values, self.deviation)
