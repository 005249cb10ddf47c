"""Causal scaling: the location and scale that each token derives from its own trailing values."""

from typing import NamedTuple

import torch
from torch import Tensor

# B batch, S tokens (forecast origins), R reach (trailing values that a token sees)

RELATIVE_FLOOR = 1e-10
# Values further off than this many scales (what came before a flat stretch, a jump out of it) pull no harder.
FURTHEST = 20.0


class Prior(NamedTuple):
    """What the training series are like, assumed where too little is seen.

    Attributes:
        level: of a typical series.
        deviation: of a typical series.
        unrest: deviation of a typical series as a share of its level, at most 1.
        least: deviation of the calmest series that moves at all.
    """

    level: Tensor
    deviation: Tensor
    unrest: Tensor
    least: Tensor


def typical_series(levels: Tensor, deviations: Tensor) -> Prior:
    """The prior of series with these means (N,) and standard deviations (N,)."""
    unrest = deviations / torch.maximum(levels.abs(), deviations).clamp(min=RELATIVE_FLOOR)
    least = torch.where(deviations > 0, deviations, torch.inf).min().nan_to_num(posinf=0.0)
    return Prior(levels.median(), deviations.median(), unrest.median(), least)


class Scale(NamedTuple):
    """Location and scale of each token: a normalised value is ``(value - loc) / scale``.

    Attributes:
        loc: (B, S, 1), units of the data.
        scale: (B, S, 1), units of the data, always > 0.
    """

    loc: Tensor
    scale: Tensor

    def normalise(self, values: Tensor) -> Tensor:
        """Values (B, S, any) in units of the data, as float32 in units of the scale, limited to ``FURTHEST``."""
        return ((values - self.loc) / self.scale).clamp(-FURTHEST, FURTHEST).float()

    def restore(self, normalised: Tensor) -> Tensor:
        """Normalised values (B, S, any) in units of the data, in the dtype of the scale."""
        return normalised.to(self.scale.dtype) * self.scale + self.loc

    def last(self, count: int) -> "Scale":
        """Those of the newest ``count`` tokens."""
        return Scale(self.loc[:, -count:], self.scale[:, -count:])


def causal_scale(history: Tensor, seen: Tensor, span: int, prior: Prior | None = None) -> Scale:
    """Mean and standard deviation of the values seen among each token's last ``span`` ones.

    Where these are missing, or all the same, the whole look-back tells: five days without a sale say little about the
    sixth. A look-back that is flat as a whole gets a tiny positive scale, so that its forecast stays at its level. A
    single value takes its scale from the ``prior``, no value its level, too.

    Args:
        history: trailing values (B, S, R), float64 to keep small movements on a high level.
        seen: bool (B, S, R), false where a value is missing.
        span: how many of the trailing values count.
        prior: for less than two values; None assumes a level of zero that never moves.

    >>> causal_scale(torch.tensor([[[9.0, 1.0, 3.0]]]), torch.ones(1, 1, 3, dtype=torch.bool), span=2).loc
    tensor([[[2.]]])
    """
    prior = prior or Prior(*history.new_zeros(len(Prior._fields)))
    recent, mean, deviation = moments(history[..., -span:], seen[..., -span:])
    count, longer_mean, longer_deviation = moments(history, seen)
    loc = torch.where(recent > 0, mean, torch.where(count > 0, longer_mean, prior.level))
    floor = RELATIVE_FLOOR * (loc.abs() + RELATIVE_FLOOR)
    single = torch.maximum(prior.unrest * loc.abs(), prior.least)
    unknown = torch.where(count > 0, single, prior.deviation)
    flat = torch.where(count > 1, longer_deviation, unknown)
    return Scale(loc, torch.maximum(torch.where(deviation > floor, deviation, flat), floor))


def moments(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many of the values (B, S, any) were seen, their mean and their standard deviation, each (B, S, 1)."""
    weight = seen.to(values.dtype)
    count = weight.sum(-1, keepdim=True)
    mean = (values * weight).sum(-1, keepdim=True) / count.clamp(min=1)
    variance = ((values - mean).square() * weight).sum(-1, keepdim=True) / count.clamp(min=1)
    return count, mean, variance.sqrt()
