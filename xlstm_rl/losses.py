"""PPO's losses of one minibatch (Schulman et al. 2017, equations 7 and 9), as SB3 has them, with gradients.

Shapes: M steps.
"""

from collections.abc import Sequence
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


class Terms(NamedTuple):
    """Of each step (M,), what losses and statistics are means of; these are taken where somebody reads them."""

    gain: Tensor  # the bounded advantage
    error: Tensor  # of the value
    entropy: Tensor  # where it is unknown the negative log-probability, whose mean it is
    log_ratio: Tensor  # of new and old policy

    def loss(self, weights: Coefficients) -> Tensor:
        """A scalar."""
        value = self.error.square().mean()
        return weights.value * value - self.gain.mean() - weights.entropy * self.entropy.mean()

    def divergence(self) -> Tensor:
        """How far each step moved the policy, (M,): http://joschu.net/blog/kl-approx.html."""
        return self.log_ratio.exp() - 1 - self.log_ratio

    def clipped(self, clip_range: float) -> Tensor:
        """1 where the ratio is out of its range, else 0, (M,)."""
        return ((self.log_ratio.exp() - 1).abs() > clip_range).to(self.log_ratio.dtype)


class Gradients(NamedTuple):
    """Of the loss, each (M,); None where it does not depend on the entropy."""

    values: Tensor
    log_prob: Tensor
    entropy: Tensor | None


@th.no_grad()
def ppo_terms(
    samples: RolloutBufferSamples, values: Tensor, log_prob: Tensor, entropy: Tensor | None, weights: Coefficients
) -> tuple[Terms, Gradients]:
    """What the loss is made of, for ``values``, ``log_prob`` and ``entropy`` (each (M,), None where it is unknown).

    The gradients in closed form are a few operations; PyTorch's would be several times as many.
    """
    gain, log_ratio, dlog_prob = _policy_terms(samples, log_prob, weights)
    error, dvalues = _value_terms(samples, values, weights)
    dentropy = None
    if weights.entropy:
        share = weights.entropy / log_prob.numel()
        if entropy is None:
            dlog_prob = dlog_prob + share
        else:
            dentropy = th.full_like(entropy, -share)
    terms = Terms(gain, error, -log_prob if entropy is None else entropy.detach(), log_ratio)
    return terms, Gradients(dvalues, dlog_prob, dentropy)


def _policy_terms(
    samples: RolloutBufferSamples, log_prob: Tensor, weights: Coefficients
) -> tuple[Tensor, Tensor, Tensor]:
    """The bounded gain, the logarithm of the ratio of new and old policy, and the gradient of ``log_prob``."""
    advantages = samples.advantages
    if weights.normalize_advantage and advantages.numel() > 1:
        deviation, mean = th.std_mean(advantages)
        advantages = (advantages - mean) / (deviation + 1e-8)
    log_ratio = log_prob - samples.old_log_prob
    ratio = log_ratio.exp()  # one, before the first update
    gain = advantages * ratio
    bounded = advantages * ratio.clamp(1 - weights.clip_range, 1 + weights.clip_range)
    # Beyond its bound the ratio has no gradient; within, the two are the same number.
    gradient = th.where(gain <= bounded, gain, 0.0) / -gain.numel()
    return th.min(gain, bounded), log_ratio, gradient


def _value_terms(samples: RolloutBufferSamples, values: Tensor, weights: Coefficients) -> tuple[Tensor, Tensor]:
    """The error, of values that move at most ``clip_range_vf`` where it is given, and the gradient of ``values``."""
    error, bound = values - samples.returns, weights.clip_range_vf
    slope = 2 * weights.value / error.numel()
    if bound is None:
        return error, error * slope
    change = values - samples.old_values
    error = samples.old_values + change.clamp(-bound, bound) - samples.returns
    return error, th.where(change.abs() <= bound, error, 0.0) * slope


def join(minibatches: Sequence[Terms]) -> tuple[Terms, Tensor]:
    """The steps of all minibatches, and each one's share in a mean over minibatches, which count alike as in SB3."""
    joined = Terms(*(th.cat(parts) for parts in zip(*minibatches, strict=True)))
    sizes = th.tensor([len(terms.gain) for terms in minibatches], device=joined.gain.device)
    shares = (1 / (sizes * len(minibatches))).to(joined.gain.dtype)
    return joined, shares.repeat_interleave(sizes)
