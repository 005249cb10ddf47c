"""PPO's losses of one minibatch (Schulman et al. 2017, equations 7 and 9), as Stable-Baselines3 has them.

Shapes: M steps.
"""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor
from torch.nn import functional as F


class Coefficients(NamedTuple):
    """What weighs and bounds the parts of the loss."""

    clip_range: float
    clip_range_vf: float | None
    entropy: float
    value: float
    normalize_advantage: bool


class Losses(NamedTuple):
    """Scalars: the loss and its parts, and what is logged of the step; ``ratio`` (M,) of new and old policy."""

    loss: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio: Tensor


def ppo_losses(
    samples: RolloutBufferSamples, values: Tensor, log_prob: Tensor, entropy: Tensor | None, weights: Coefficients
) -> Losses:
    """The losses of ``values``, ``log_prob`` and ``entropy`` (each (M,), entropy None where it is unknown)."""
    advantages = samples.advantages
    if weights.normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    log_ratio = log_prob - samples.old_log_prob
    ratio = log_ratio.exp()  # one, before the first update
    bounded = ratio.clamp(1 - weights.clip_range, 1 + weights.clip_range)
    policy = -th.min(advantages * ratio, advantages * bounded).mean()
    if weights.clip_range_vf is not None:
        change = (values - samples.old_values).clamp(-weights.clip_range_vf, weights.clip_range_vf)
        values = samples.old_values + change
    value = F.mse_loss(values, samples.returns)
    negative_entropy = log_prob.mean() if entropy is None else -entropy.mean()
    loss = policy + weights.value * value
    if weights.entropy:
        loss = loss + weights.entropy * negative_entropy
    with th.no_grad():
        clip_fraction = ((ratio - 1).abs() > weights.clip_range).float().mean()
        approx_kl = ((ratio - 1) - log_ratio).mean()  # http://joschu.net/blog/kl-approx.html
    return Losses(loss, policy, value, negative_entropy, clip_fraction, approx_kl, ratio)
