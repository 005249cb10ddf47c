"""Causal scaling: the location and scale that each token derives from its own trailing values."""

from typing import NamedTuple

import torch
from torch import Tensor

# B batch, S tokens (forecast origins), R reach (trailing values that a token sees)

RELATIVE_FLOOR = 1e-10
# Values further off than this many scales (what came before a flat stretch, a jump out of it) pull no harder.
FURTHEST = 20.0


class Prior(NamedTuple):
    """What is assumed where too little is seen: a typical level, and a typical deviation as a share of the level."""

    level: Tensor | float = 0.0
    unrest: Tensor | float = 0.0


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

    A constant history gets a tiny positive scale, so that its forecast stays at its level. A single value takes its
    scale from the ``prior``, an empty history its level, too.

    Args:
        history: trailing values (B, S, R), float64 to keep small movements on a high level.
        seen: bool (B, S, R), false where a value is missing.
        span: how many of the trailing values count.
        prior: for less than two values; None assumes a level of zero that never moves.

    >>> causal_scale(torch.tensor([[[9.0, 1.0, 3.0]]]), torch.ones(1, 1, 3, dtype=torch.bool), span=2).loc
    tensor([[[2.]]])
    """
    level, unrest = prior or Prior()
    recent, weight = history[..., -span:], seen[..., -span:].to(history.dtype)
    count = weight.sum(-1, keepdim=True)
    loc = (recent * weight).sum(-1, keepdim=True) / count.clamp(min=1)
    loc = torch.where(count > 0, loc, level)
    deviation = ((recent - loc).square() * weight).sum(-1, keepdim=True).div(count.clamp(min=1)).sqrt()
    deviation = torch.where(count > 1, deviation, unrest * loc.abs())
    return Scale(loc, torch.maximum(deviation, RELATIVE_FLOOR * (loc.abs() + RELATIVE_FLOOR)))
