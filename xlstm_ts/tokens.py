"""Tokens: a sliding view of a series in patches, each scaled by its own past.

Shapes: B batch, L window length, S tokens, P patch length, R reach (trailing values that a token sees).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from xlstm_ts.scaling import Scale, causal_scale


class Tokens(NamedTuple):
    """What each token knows of its own past, newest value last.

    Attributes:
        history: (B, S, R) float32 in units of ``scale``, zero where not seen.
        seen: (B, S, R) bool, false before a series begins.
        scale: location and scale of each token.
    """

    history: Tensor
    seen: Tensor
    scale: Scale

    def last(self, count: int) -> "Tokens":
        """The newest ``count`` tokens."""
        scale = Scale(self.scale.loc[:, -count:], self.scale.scale[:, -count:])
        return Tokens(self.history[:, -count:], self.seen[:, -count:], scale)


def tokenise(values: Tensor, seen: Tensor, *, reach: int, patch_length: int, span: int) -> Tokens:
    """Cut windows into tokens, one for every ``patch_length`` values, the last one ending with the window.

    Args:
        values: (B, L) with L = reach + (S - 1) * patch_length, float64.
        seen: bool (B, L), false where ``values`` is padding.
        reach: trailing values that a token sees.
        patch_length: distance between tokens.
        span: trailing values that set a token's location and scale.
    """
    history = values.unfold(1, reach, patch_length)  # (B, S, R)
    known = seen.unfold(1, reach, patch_length)
    scale = causal_scale(history, known, span)
    return Tokens(torch.where(known, scale.normalise(history), 0.0), known, scale)


def feature_count(patch_length: int) -> int:
    """Width of what ``patch_features`` returns."""
    return 3 * patch_length + 2


def patch_features(tokens: Tokens, *, patch_length: int, season_length: int) -> Tensor:
    """The network's input (B, S, F): the newest patch, its change over a season, what is padding, level and unrest."""
    patch, known = tokens.history[..., -patch_length:], tokens.seen[..., -patch_length:]
    season_ago = slice(-patch_length - season_length, -season_length)
    both = known & tokens.seen[..., season_ago]
    change = torch.where(both, patch - tokens.history[..., season_ago], 0.0)
    # asinh(loc / scale) tells where zero lies, for series that cannot fall below it.
    level = torch.asinh(tokens.scale.loc / tokens.scale.scale).float()
    unrest = tokens.history[..., -season_length:].square().mean(-1, keepdim=True).add(1e-4).log()
    return torch.cat([patch, change, known.float(), level, unrest], -1)


def starts_afresh(tokens: Tokens, patch_length: int) -> Tensor:
    """Bool (B, S): true where the token before holds padding alone, so that nothing of it may be remembered."""
    empty = ~tokens.seen[..., -patch_length:].any(-1)
    return torch.cat([torch.zeros_like(empty[:, :1]), empty[:, :-1]], 1)
