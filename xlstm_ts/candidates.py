"""Candidates: for every step ahead, past values that it may continue.

Shapes: B batch, S tokens, R reach, H horizon, K candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xlstm_ts.tokens import Tokens


class Candidates(nn.Module):
    """The last value, the values one or more seasons before each step, and seasonal values that drift on.

    A drifting candidate adds to the value a season ago what the mean of the newest season gained over the one before:
    without it, a network has to learn from few values how to go on where none has been.

    Args:
        horizon: steps ahead H.
        seasonal_lags: (season length, how many seasons back) of each plain candidate.
        season_lengths: of each drifting candidate.
        reach: values R in a token's history, two of the longest season at least.

    Attributes:
        favoured: (K,) bool, the candidates to start from: the newest season, as it is or drifting.
    """

    index: Tensor
    seasons_ahead: Tensor

    def __init__(
        self, horizon: int, *, seasonal_lags: Sequence[tuple[int, int]], season_lengths: Sequence[int], reach: int
    ) -> None:
        super().__init__()
        self.season_lengths = tuple(season_lengths)
        self.favoured = (False, *(back == 1 for _, back in seasonal_lags), *(True for _ in season_lengths))
        lags = [*seasonal_lags, *((season, 1) for season in season_lengths)]
        step = torch.arange(1, horizon + 1)
        # A step beyond one season ahead is continued from the same phase of the newest season.
        distances = [(seasons_ahead(step, season) + back - 1) * season - step for season, back in lags]
        index = reach - 1 - torch.stack([torch.zeros_like(step), *distances], -1)
        drifts = torch.stack([seasons_ahead(step, season) for season in season_lengths], -1)
        self.register_buffer("index", index, persistent=False)  # (H, K)
        self.register_buffer("seasons_ahead", drifts.float(), persistent=False)  # (H, len(season_lengths))

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Candidates (B, S, H, K) in units of each token's scale, and which are available, bool of that shape."""
        values, available = tokens.history[..., self.index], tokens.seen[..., self.index]
        gains = torch.stack([seasonal_gain(tokens.history, season) for season in self.season_lengths], -1)
        known = torch.stack([tokens.seen[..., -2 * season :].all(-1) for season in self.season_lengths], -1)
        plain = len(self.favoured) - len(self.season_lengths)
        drifting = values[..., plain:] + gains.unsqueeze(-2) * self.seasons_ahead
        values = torch.cat([values[..., :plain], drifting], -1)
        return values, torch.cat([available[..., :plain], available[..., plain:] & known.unsqueeze(-2)], -1)


def seasonal_gain(history: Tensor, season: int) -> Tensor:
    """Mean of the newest season less that of the one before: (B, S, R) -> (B, S)."""
    return history[..., -season:].mean(-1) - history[..., -2 * season : -season].mean(-1)


def seasons_ahead(step: Tensor, season: int) -> Tensor:
    """In which season after the newest one a step lies, from 1."""
    return (step + season - 1) // season
