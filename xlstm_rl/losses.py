"""PPO's losses of one minibatch (Schulman et al. 2017, equations 7 and 9), as SB3 has them, with gradients.

Shapes: M steps.
"""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor


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


class Gradients(NamedTuple):
    """Of the loss, each (M,); None where it does not depend on the entropy."""

    values: Tensor
    log_prob: Tensor
    entropy: Tensor | None


@th.no_grad()
def ppo_losses(
    samples: RolloutBufferSamples, values: Tensor, log_prob: Tensor, entropy: Tensor | None, weights: Coefficients
) -> tuple[Losses, Gradients]:
    """The losses of ``values``, ``log_prob`` and ``entropy`` (each (M,), entropy None where it is unknown).

    Their gradients are as few operations as the losses; PyTorch's would be several times as many.
    """
    policy, ratio, dlog_prob = _policy_loss(samples, log_prob, weights)
    value, dvalues = _value_loss(samples, values, weights)
    loss = policy + weights.value * value
    negative_entropy = log_prob.mean() if entropy is None else -entropy.mean()
    dentropy = None
    if weights.entropy:
        loss = loss + weights.entropy * negative_entropy
        share = weights.entropy / log_prob.numel()
        if entropy is None:
            dlog_prob = dlog_prob + share
        else:
            dentropy = th.full_like(entropy, -share)
    away = ratio - 1
    clip_fraction = (away.abs() > weights.clip_range).float().mean()
    approx_kl = (away - (log_prob - samples.old_log_prob)).mean()  # http://joschu.net/blog/kl-approx.html
    losses = Losses(loss, policy, value, negative_entropy, clip_fraction, approx_kl, ratio)
    return losses, Gradients(weights.value * dvalues, dlog_prob, dentropy)


def _policy_loss(
    samples: RolloutBufferSamples, log_prob: Tensor, weights: Coefficients
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped loss, the ratio of new and old policy, and the gradient of ``log_prob``."""
    advantages = samples.advantages
    if weights.normalize_advantage and advantages.numel() > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = (log_prob - samples.old_log_prob).exp()  # one, before the first update
    gain = advantages * ratio
    bounded = advantages * ratio.clamp(1 - weights.clip_range, 1 + weights.clip_range)
    # Beyond its bound the ratio has no gradient; within, the two are the same number.
    gradient = th.where(gain <= bounded, gain, 0.0) / -gain.numel()
    return -th.min(gain, bounded).mean(), ratio, gradient


def _value_loss(samples: RolloutBufferSamples, values: Tensor, weights: Coefficients) -> tuple[Tensor, Tensor]:
    """The mean squared error, of values that move at most ``clip_range_vf`` where it is given, and its gradient."""
    errors, bound = values - samples.returns, weights.clip_range_vf
    if bound is None:
        return errors.square().mean(), errors * (2 / errors.numel())
    change = values - samples.old_values
    errors = samples.old_values + change.clamp(-bound, bound) - samples.returns
    return errors.square().mean(), th.where(change.abs() <= bound, errors, 0.0) * (2 / errors.numel())
