"""Candidates: for every step ahead, past values that it may continue, and what a linear map makes of the past.

Shapes: B batch, S tokens, R reach, H horizon, K candidates, E covariates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xlstm_ts.tokens import Tokens

# Training starts from a forecast close to what is favoured.
DISFAVOUR = 2.0
MAP_FAVOUR = 6.0  # a map that was solved for is what to start from, not one of several


class Candidates(nn.Module):
    """The last value, the values one or more seasons before each step, and seasonal values that drift on.

    A drifting candidate adds to the value a season ago what the mean of the newest season gained over the one before:
    without it, a network has to learn from few values how to go on where none has been. A linear map from a long
    look-back, where there is one, brings the last candidate.

    Args:
        horizon: steps ahead H.
        seasonal_lags: (season length, how many seasons back) of each plain candidate.
        season_lengths: of each drifting candidate.
        reach: values R in a token's history, two of the longest season at least.
        linear_lookback: values that the map reads; 0 is no map.

    Attributes:
        preferences: the logarithm of the weight that each of the K candidates starts with: a mixture of the newest
            season, as it is and drifting, or the linear map.
        linear_map: (linear_lookback, H) weights, solved for by ``xlstm_ts.linear_map``; all zero is no map yet.
    """

    linear_map: Tensor
    index: Tensor
    seasons_ahead: Tensor

    def __init__(
        self,
        horizon: int,
        *,
        seasonal_lags: Sequence[tuple[int, int]],
        season_lengths: Sequence[int],
        reach: int,
        linear_lookback: int = 0,
    ) -> None:
        super().__init__()
        self.season_lengths = tuple(season_lengths)
        favoured = (False, *(back == 1 for _, back in seasonal_lags), *(True for _ in season_lengths))
        mapped = (MAP_FAVOUR,) if linear_lookback else ()
        self.preferences = (*(0.0 if good else -DISFAVOUR for good in favoured), *mapped)
        lags = [*seasonal_lags, *((season, 1) for season in season_lengths)]
        step = torch.arange(1, horizon + 1)
        # A step beyond one season ahead is continued from the same phase of the newest season.
        distances = [(seasons_ahead(step, season) + back - 1) * season - step for season, back in lags]
        index = reach - 1 - torch.stack([torch.zeros_like(step), *distances], -1)
        drifts = torch.stack([seasons_ahead(step, season) for season in season_lengths], -1)
        self.register_buffer("linear_map", torch.zeros(linear_lookback, horizon), persistent=linear_lookback > 0)
        self.register_buffer("index", index, persistent=False)  # (H, K)
        self.register_buffer("seasons_ahead", drifts.float(), persistent=False)  # (H, len(season_lengths))

    @property
    def num_past(self) -> int:
        """How many candidates go on from single past values."""
        return self.index.shape[1]

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Candidates (B, S, H, K) in units of each token's scale, and which are available, bool of that shape.

        The first one, the newest value that was seen, is always available; without any it is the location.
        """
        values, available = tokens.history[..., self.index], tokens.seen[..., self.index]
        values[..., 0] = last_seen(tokens).unsqueeze(-1)
        available[..., 0] = True
        gains, known = zip(*(seasonal_gain(tokens, season) for season in self.season_lengths), strict=True)
        plain = self.num_past - len(self.season_lengths)
        drifting = values[..., plain:] + torch.stack(gains, -1).unsqueeze(-2) * self.seasons_ahead
        values = torch.cat([values[..., :plain], drifting], -1)
        both = available[..., plain:] & torch.stack(known, -1).unsqueeze(-2)
        available = torch.cat([available[..., :plain], both], -1)
        if not len(self.linear_map):
            return values, available
        mapped = self.mapped(tokens)
        solved = self.linear_map.any().expand_as(mapped)
        return torch.cat([values, mapped.unsqueeze(-1)], -1), torch.cat([available, solved.unsqueeze(-1)], -1)

    def mapped(self, tokens: Tokens) -> Tensor:
        """What the linear map forecasts (B, S, H)."""
        return tokens.history[..., -len(self.linear_map) :] @ self.linear_map

    def contrast(self, behind: Tensor, ahead: Tensor) -> Tensor:
        """How the covariates of each step differ from those of the steps it may continue: (B, S, H, num_past * E).

        Args:
            behind: covariates (B, S, R, E) of each token's look-back.
            ahead: (B, S, H, E) of its steps ahead.
        """
        return (ahead.unsqueeze(-2) - behind[:, :, self.index]).flatten(3)


def last_seen(tokens: Tokens) -> Tensor:
    """The newest value that each token saw (B, S); 0, its location, where there is none."""
    position = torch.arange(1, tokens.seen.shape[-1] + 1, device=tokens.seen.device)
    newest = (tokens.seen * position).argmax(-1, keepdim=True)
    return tokens.history.gather(-1, newest).squeeze(-1)


def seasonal_gain(tokens: Tokens, season: int) -> tuple[Tensor, Tensor]:
    """What the newest season gained over the one before, on average over the steps seen in both.

    Returns:
        The gain (B, S), and whether at least half of the steps were seen in both, bool (B, S).
    """
    newer, older = slice(-season, None), slice(-2 * season, -season)
    both = tokens.seen[..., newer] & tokens.seen[..., older]
    change = torch.where(both, tokens.history[..., newer] - tokens.history[..., older], 0.0)
    count = both.sum(-1)
    return change.sum(-1) / count.clamp(min=1), 2 * count >= season


def seasons_ahead(step: Tensor, season: int) -> Tensor:
    """In which season after the newest one a step lies, from 1."""
    return (step + season - 1) // season
