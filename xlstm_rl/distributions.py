"""SB3's action distributions in closed form, with action masks.

torch's classes check their arguments at every call, which takes longer than a small policy's network. The ones here
also leave the policy's own distribution as it was: each call gives a new one, so that no graph stays behind.

Shapes: B batch, A logits, K parts of an action.
"""

import copy
import math
from typing import Any, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

FORBIDDEN = -1e8  # as in sb3-contrib: a probability of zero in float32, without the NaN of -inf * 0


class QuickCategorical(CategoricalDistribution):
    """One of A actions."""

    log_probs: Tensor  # (B, A)

    def proba_distribution(self, action_logits: Tensor) -> Self:
        new = copy.copy(self)
        new.log_probs = F.log_softmax(action_logits, dim=1)
        return new

    def masked(self, allowed: Tensor) -> Self:
        """The same without the actions that ``allowed`` (B, A) excludes."""
        return self.proba_distribution(self.log_probs.masked_fill(~allowed, FORBIDDEN))

    @property
    def distribution(self) -> Categorical:  # type: ignore[override]
        """torch's own, for those who look inside."""
        return Categorical(logits=self.log_probs)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_probs.gather(1, actions.long().view(-1, 1)).squeeze(1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(dim=1)

    def sample(self) -> Tensor:
        # The first of A exponential clocks, as fast as its action is likely
        return (self.log_probs - th.empty_like(self.log_probs).exponential_().log()).argmax(dim=1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(dim=1)


class QuickMultiCategorical(MultiCategoricalDistribution):
    """K choices, each of its own number of actions."""

    parts: list[QuickCategorical]

    def proba_distribution(self, action_logits: Tensor) -> Self:
        new = copy.copy(self)
        logits = action_logits.split(list(self.action_dims), dim=1)
        new.parts = [QuickCategorical(part.shape[1]).proba_distribution(part) for part in logits]
        return new

    def masked(self, allowed: Tensor) -> Self:
        """The same without the actions that ``allowed`` (B, A) excludes, all parts' one after the other."""
        new = copy.copy(self)
        masks = allowed.split(list(self.action_dims), dim=1)
        new.parts = [part.masked(mask) for part, mask in zip(self.parts, masks, strict=True)]
        return new

    @property
    def distribution(self) -> list[Categorical]:  # type: ignore[override]
        """torch's own, for those who look inside."""
        return [part.distribution for part in self.parts]

    def log_prob(self, actions: Tensor) -> Tensor:
        chosen = zip(self.parts, actions.unbind(dim=1), strict=True)
        return th.stack([part.log_prob(action) for part, action in chosen]).sum(dim=0)

    def entropy(self) -> Tensor:
        return th.stack([part.entropy() for part in self.parts]).sum(dim=0)

    def sample(self) -> Tensor:
        return th.stack([part.sample() for part in self.parts], dim=1)

    def mode(self) -> Tensor:
        return th.stack([part.mode() for part in self.parts], dim=1)


class MaskedBernoulli(BernoulliDistribution):
    """K switches; a mask allows off and on of each."""

    logits: Tensor  # (B, K)

    def proba_distribution(self, action_logits: Tensor) -> Self:
        new = super(MaskedBernoulli, copy.copy(self)).proba_distribution(action_logits)
        new.logits = action_logits
        return new

    def masked(self, allowed: Tensor) -> Self:
        """The same where ``allowed`` (B, 2 K) says of each switch whether it may be off, whether it may be on."""
        may_be_off, may_be_on = allowed.unflatten(1, (-1, 2)).unbind(dim=2)
        logits = self.logits.masked_fill(~may_be_on, FORBIDDEN)
        return self.proba_distribution(logits.masked_fill(~may_be_off, -FORBIDDEN))


class QuickGaussian(DiagGaussianDistribution):
    """Independent normal actions."""

    means: Tensor  # (B, K)
    log_std: Tensor  # (K,)

    def proba_distribution(self, mean_actions: Tensor, log_std: Tensor) -> Self:
        new = copy.copy(self)
        new.means, new.log_std = mean_actions, log_std
        return new

    @property
    def distribution(self) -> Normal:  # type: ignore[override]
        """torch's own, for those who look inside."""
        return Normal(self.means, self.log_std.exp().expand_as(self.means))

    def log_prob(self, actions: Tensor) -> Tensor:
        distances = (actions - self.means) * th.exp(-self.log_std)
        constant = self.log_std.sum() + 0.5 * math.log(2 * math.pi) * self.log_std.numel()
        return -0.5 * distances.square().sum(dim=1) - constant

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(self.means))

    def sample(self) -> Tensor:
        return th.addcmul(self.means, th.randn_like(self.means), self.log_std.exp())

    def mode(self) -> Tensor:
        return self.means


class FreshStateDependentNoise(StateDependentNoiseDistribution):
    """gSDE: its noise is the policy's, what it knows of a batch is not."""

    def proba_distribution(self, *args: Any, **kwargs: Any) -> Self:
        return super(FreshStateDependentNoise, copy.copy(self)).proba_distribution(*args, **kwargs)


def quicker(distribution: Distribution) -> Distribution:
    """The class of this file that stands for SB3's, made alike."""
    if type(distribution) is CategoricalDistribution:
        return QuickCategorical(distribution.action_dim)
    if type(distribution) is MultiCategoricalDistribution:
        return QuickMultiCategorical(distribution.action_dims)
    if type(distribution) is BernoulliDistribution:
        return MaskedBernoulli(distribution.action_dims)
    if type(distribution) is DiagGaussianDistribution:
        return QuickGaussian(distribution.action_dim)
    if type(distribution) is StateDependentNoiseDistribution:
        new = copy.copy(distribution)
        new.__class__ = FreshStateDependentNoise  # the same object with its noise, but for one method
        return new
    return distribution


def mask_distribution(distribution: Distribution, allowed: Tensor) -> Distribution:
    """The distribution without the actions that ``allowed`` (B, A) excludes."""
    assert isinstance(distribution, QuickCategorical | QuickMultiCategorical | MaskedBernoulli)
    return distribution.masked(allowed)


def mask_parts(action_space: spaces.Space) -> list[int]:
    """How many of a mask's A flags belong to each choice, in their order; a switch of a MultiBinary space has two.

    Raises:
        ValueError: an action space without a finite number of actions.
    """
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, spaces.MultiDiscrete):
        return [int(choices) for choices in action_space.nvec.flat]
    if isinstance(action_space, spaces.MultiBinary):
        return [2] * int(np.prod(action_space.shape))
    raise ValueError(f"action masks need a Discrete, MultiDiscrete or MultiBinary action space, got {action_space}")
