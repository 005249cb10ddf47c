"""Tokens: what a forecast origin sees itself of its series, a bounded look-back scaled by its own past.

Shapes: B batch, L steps, S tokens, P patch length, R reach (trailing values that a token sees).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from xlstm_ts.scaling import Prior, Scale, causal_scale


class Tokens(NamedTuple):
    """What each token knows of its own past, newest value last.

    Attributes:
        history: (B, S, R) float32 in units of ``scale``, zero where not seen.
        seen: (B, S, R) bool, false where a value is missing and before a series begins.
        scale: location and scale of each token.
    """

    history: Tensor
    seen: Tensor
    scale: Scale

    def last(self, count: int) -> "Tokens":
        """The newest ``count`` tokens."""
        return Tokens(self.history[:, -count:], self.seen[:, -count:], self.scale.last(count))


def tokenise(values: Tensor, seen: Tensor, *, reach: int, stride: int, span: int, prior: Prior | None = None) -> Tokens:
    """Cut windows into tokens, one for every ``stride`` values, the last one ending with the window.

    Args:
        values: (B, L) with L = reach + (S - 1) * stride, float64.
        seen: bool (B, L), false where a value is missing.
        reach: trailing values that a token sees.
        stride: distance between tokens.
        span: trailing values that set a token's location and scale.
        prior: of the scale, for tokens that see less than two values.
    """
    history = values.unfold(1, reach, stride)  # (B, S, R)
    known = seen.unfold(1, reach, stride)
    scale = causal_scale(history, known, span, prior)
    return Tokens(torch.where(known, scale.normalise(history), 0.0), known, scale)


def feature_count(patch_length: int) -> int:
    """Width of what ``patch_features`` returns."""
    return 3 * patch_length + 2


def patch_features(tokens: Tokens, *, patch_length: int, season_length: int) -> Tensor:
    """The network's input (B, S, F): the newest patch, its change over a season, what is missing, level and unrest."""
    patch, known = tokens.history[..., -patch_length:], tokens.seen[..., -patch_length:]
    season_ago = slice(-patch_length - season_length, -season_length)
    both = known & tokens.seen[..., season_ago]
    change = torch.where(both, patch - tokens.history[..., season_ago], 0.0)
    # asinh(loc / scale) tells where zero lies, for series that cannot fall below it.
    level = torch.asinh(tokens.scale.loc / tokens.scale.scale).float()
    count = tokens.seen[..., -season_length:].sum(-1, keepdim=True).clamp(min=1)
    unrest = (tokens.history[..., -season_length:].square().sum(-1, keepdim=True) / count).add(1e-4).log()
    return torch.cat([patch, change, known.float(), level, unrest], -1)


def starts_afresh(tokens: Tokens, patch_length: int) -> Tensor:
    """Bool (B, S): true where a token sees nothing but its newest patch, so that no older state may act.

    So it is where a series begins, and after a gap as long as the look-back. The rule reads the look-back alone:
    padding in front of a series and a series that begins without any come to the same.
    """
    return ~tokens.seen[..., :-patch_length].any(-1)
