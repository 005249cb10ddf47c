"""The causal forecasting network: patches -> xLSTM state -> quantiles of the next ``horizon`` values at every token.

Shapes: B batch, L window length, S tokens, R reach, H horizon, K candidates, Q quantiles, D embedding dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xlstm_kernels import StackState, xLSTMBlockStack, xLSTMConfig
from xlstm_ts.candidates import Candidates
from xlstm_ts.heads import QuantileHead
from xlstm_ts.tokens import Tokens, feature_count, patch_features, starts_afresh, tokenise


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of a ``ForecastNetwork``.

    Attributes:
        horizon: steps ahead H that every token forecasts.
        season_lengths: periods in steps, the shortest first, such as (24, 168) for hourly data.
        quantiles: probabilities in ascending order, an odd number of them around 0.5.
        patch_length: values that one token brings.
        season_repeats: how many of the shortest seasons before the origin are offered as candidates.
        embedding_dim, num_blocks, num_heads, dropout: as in ``xLSTMConfig``; all blocks are sLSTM blocks.
        step_dim, decoder_dim: as in ``QuantileHead``.
    """

    horizon: int
    season_lengths: tuple[int, ...]
    quantiles: tuple[float, ...]
    patch_length: int
    season_repeats: int = 4
    embedding_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    step_dim: int = 16
    decoder_dim: int = 64
    dropout: float = 0.0

    @property
    def seasonal_lags(self) -> tuple[tuple[int, int], ...]:
        """(season length, how many seasons back) of every seasonal candidate."""
        shortest, *longer = self.season_lengths
        short = [(shortest, repeat) for repeat in range(1, self.season_repeats + 1)]
        return (*short, *((season, repeat) for season in longer for repeat in (1, 2)))

    @property
    def span(self) -> int:
        """Trailing values that set location and scale: two short seasons or one long one."""
        return max(2 * self.season_lengths[0], self.season_lengths[-1], self.patch_length)

    @property
    def reach(self) -> int:
        """Trailing values R that a token sees itself; older ones act through the carried state."""
        lags = (season * repeat for season, repeat in self.seasonal_lags)
        return max(self.span, self.patch_length + self.season_lengths[0], *lags)


class ForecastNetwork(nn.Module):
    """Encodes a window token by token and forecasts at any of them.

    >>> network = ForecastNetwork(
    ...     NetworkConfig(horizon=6, season_lengths=(4,), quantiles=(0.1, 0.5, 0.9), patch_length=4)
    ... )
    >>> window = torch.randn(2, network.config.reach + 4, dtype=torch.float64)
    >>> quantiles, tokens, state = network(window, torch.ones_like(window, dtype=torch.bool))
    >>> quantiles.shape
    torch.Size([2, 2, 6, 3])
    """

    margins: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(feature_count(config.patch_length), config.embedding_dim)
        self.stack = xLSTMBlockStack(
            xLSTMConfig(
                embedding_dim=config.embedding_dim,
                num_blocks=config.num_blocks,
                num_heads=config.num_heads,
                slstm_at=tuple(range(config.num_blocks)),
                dropout=config.dropout,
            )
        )
        self.candidates = Candidates(
            config.horizon,
            seasonal_lags=config.seasonal_lags,
            season_lengths=config.season_lengths,
            reach=config.reach,
        )
        self.head = QuantileHead(
            config.embedding_dim,
            config.horizon,
            favoured=self.candidates.favoured,
            num_quantiles=len(config.quantiles),
            step_dim=config.step_dim,
            decoder_dim=config.decoder_dim,
        )
        self.register_buffer("margins", torch.zeros(len(config.quantiles)))  # set by calibration

    def forward(
        self, values: Tensor, seen: Tensor, state: StackState | None = None, *, origins: int | None = None
    ) -> tuple[Tensor, Tokens, StackState]:
        """Quantiles (B, origins, H, Q) in units of each origin's scale, those origins, and the state after the window.

        Args:
            values: (B, L) with L = reach + (S - 1) * patch_length, float64; the first ``reach - patch_length`` values
                are only looked back at, so a carried ``state`` continues with overlapping windows.
            seen: bool (B, L), false where ``values`` is padding.
            state: where to continue; None is the empty memory.
            origins: how many of the newest tokens forecast; None is all.
        """
        config = self.config
        tokens = tokenise(values, seen, reach=config.reach, patch_length=config.patch_length, span=config.span)
        features = patch_features(tokens, patch_length=config.patch_length, season_length=config.season_lengths[0])
        hidden, state = self.stack(self.embed(features), state, starts_afresh(tokens, config.patch_length))
        count = origins or hidden.shape[1]
        chosen = tokens.last(count)
        return self.head(hidden[:, -count:], *self.candidates(chosen)) + self.margins, chosen, state
