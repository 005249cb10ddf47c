"""The causal forecasting network: patches -> xLSTM state -> a distribution of the next ``horizon`` values at any token.

Shapes: B batch, L steps, S tokens, P patch length, R reach, H horizon, n parameters, Q quantiles, E covariate channels,
D embedding dim.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xlstm_kernels import StackState, xLSTMBlockStack, xLSTMConfig
from xlstm_ts.candidates import Candidates
from xlstm_ts.decoder import Decoder
from xlstm_ts.embeddings import CovariateEmbedding, CovariateSizes
from xlstm_ts.heads import make_head
from xlstm_ts.rows import Rows
from xlstm_ts.scaling import Prior, Scale
from xlstm_ts.stepping import SteppingStack
from xlstm_ts.tokens import Tokens, feature_count, patch_features, starts_afresh, tokenise

NO_COVARIATES = CovariateSizes()
# The deviation of fewer values is too noisy a unit; where more than the reach are the same, the next likely is, too.
LEAST_SPAN, LEAST_REACH = 12, 20


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of a ``ForecastNetwork``.

    Attributes:
        horizon: steps ahead H that every token forecasts.
        season_lengths: periods in steps, the shortest first, such as (24, 168) for hourly data.
        quantiles: probabilities in ascending order, an odd number of them around 0.5.
        patch_length: values P that one token brings.
        season_repeats: how many of the shortest seasons before the origin are offered as candidates.
        embedding_dim, num_blocks, num_heads, dropout: as in ``xLSTMConfig``; all blocks are sLSTM blocks.
        linear_lookback: as in ``Candidates``.
        step_dim, decoder_dim: as in ``Decoder``.
        head: one of ``xlstm_ts.heads.HEADS``.
        static, known, past: sizes of the covariates.
    """

    horizon: int
    season_lengths: tuple[int, ...]
    quantiles: tuple[float, ...]
    patch_length: int
    season_repeats: int = 4
    embedding_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    linear_lookback: int = 0
    step_dim: int = 16
    decoder_dim: int = 64
    dropout: float = 0.0
    head: str = "quantile"
    static: CovariateSizes = NO_COVARIATES
    known: CovariateSizes = NO_COVARIATES
    past: CovariateSizes = NO_COVARIATES

    @cached_property
    def seasonal_lags(self) -> tuple[tuple[int, int], ...]:
        """(season length, how many seasons back) of every seasonal candidate."""
        shortest, *longer = self.season_lengths
        short = [(shortest, repeat) for repeat in range(1, self.season_repeats + 1)]
        return (*short, *((season, repeat) for season in longer for repeat in (1, 2)))

    @cached_property
    def span(self) -> int:
        """Trailing values that set location and scale: two short seasons or one long one, a dozen at least."""
        return max(LEAST_SPAN, 2 * self.season_lengths[0], self.season_lengths[-1], self.patch_length)

    @cached_property
    def reach(self) -> int:
        """Trailing values R that a token sees itself; older ones act through the carried state."""
        lags = (season * repeat for season, repeat in self.seasonal_lags)
        return max(LEAST_REACH, self.span, self.patch_length + self.season_lengths[0], self.linear_lookback, *lags)


class Encoded(NamedTuple):
    """All that forecasts at some tokens are made from.

    Attributes:
        hidden: what the stack made of each token and all before it (B, S, D), static covariates included.
        tokens: the look-backs.
        behind: known covariates (B, S, R, E) of each look-back.
    """

    hidden: Tensor
    tokens: Tokens
    behind: Tensor

    def last(self, count: int) -> "Encoded":
        """The newest ``count`` tokens."""
        return Encoded(self.hidden[:, -count:], self.tokens.last(count), self.behind[:, -count:])


class ForecastNetwork(nn.Module):
    """Encodes rows token by token and forecasts at any token.

    ``embed`` is what a token sees itself, ``stack`` adds what the state remembers, ``decode`` forecasts. The state
    steps from a token to the next one a patch later; ``xlstm_ts.memory`` carries it from row to row.

    >>> network = ForecastNetwork(
    ...     NetworkConfig(horizon=6, season_lengths=(4,), quantiles=(0.1, 0.5, 0.9), patch_length=4)
    ... )
    >>> rows = unseen_rows(2, network.config.reach + 4 + 6).with_values(torch.randn(2, 26, dtype=torch.float64))
    >>> parameters, tokens = network(rows)
    >>> parameters.shape
    torch.Size([2, 2, 6, 3])
    """

    margins: Tensor
    path_correlation: Tensor
    prior: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.covariates = CovariateEmbedding(config.static, config.known, config.past)
        patch = config.known.channels + config.past.channels
        inputs = feature_count(config.patch_length) + config.patch_length * patch + config.static.channels
        self.embedding = nn.Linear(inputs, config.embedding_dim)
        self.stack = xLSTMBlockStack(
            xLSTMConfig(
                embedding_dim=config.embedding_dim,
                num_blocks=config.num_blocks,
                num_heads=config.num_heads,
                slstm_at=tuple(range(config.num_blocks)),
                dropout=config.dropout,
            )
        )
        self.stepping = SteppingStack(self.stack)
        self.candidates = Candidates(
            config.horizon,
            seasonal_lags=config.seasonal_lags,
            season_lengths=config.season_lengths,
            reach=config.reach,
            linear_lookback=config.linear_lookback,
        )
        self.head = make_head(config.head, config.quantiles)
        self.decoder = Decoder(
            config.embedding_dim + config.static.channels,
            config.horizon,
            preferences=self.candidates.preferences,
            num_outputs=self.head.num_outputs,
            num_covariates=config.known.channels * (1 + self.candidates.num_past),
            step_dim=config.step_dim,
            decoder_dim=config.decoder_dim,
        )
        self.register_buffer("margins", torch.zeros(config.horizon, len(config.quantiles)))  # both set by calibration
        self.register_buffer("path_correlation", torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("prior", torch.zeros(len(Prior._fields), dtype=torch.float64))  # set by the training data

    def tokenise(self, rows: Rows, stride: int) -> Tokens:
        """The look-backs (B, S) of rows, L = reach + (S - 1) * stride steps."""
        sizes, prior = self.config, Prior(*self.prior)
        return tokenise(rows.values, rows.seen, reach=sizes.reach, stride=stride, span=sizes.span, prior=prior)

    def embed(self, rows: Rows, stride: int) -> tuple[Tensor, Tensor, Encoded]:
        """What each token sees itself.

        Args:
            rows: L = reach + (S - 1) * stride steps.
            stride: steps between tokens.

        Returns:
            Inputs of the stack (B, S, D), where its state starts afresh (B, S), and what decoding needs besides the
            stack's outputs, ``hidden`` holding static covariates alone.
        """
        config = self.config
        reach, patch_length = config.reach, config.patch_length
        tokens = self.tokenise(rows, stride)
        static, known, past = self.covariates(rows.numeric, rows.categories)
        newest = static[:, reach - 1 :: stride]
        patch = torch.cat([known, past], -1)[:, reach - patch_length :].unfold(1, patch_length, stride).flatten(2)
        features = patch_features(tokens, patch_length=patch_length, season_length=config.season_lengths[0])
        inputs = self.embedding(torch.cat([features, patch, newest], -1))
        behind = known.unfold(1, reach, stride).transpose(2, 3)
        return inputs, starts_afresh(tokens, patch_length), Encoded(newest, tokens, behind)

    def encode(self, rows: Rows, state: StackState | None = None) -> tuple[Encoded, StackState]:
        """Read tokens a patch apart, L = reach + (S - 1) * patch_length steps, and return the state after the last."""
        inputs, afresh, seen = self.embed(rows, self.config.patch_length)
        hidden, state = self.stack(inputs, state, afresh)
        return seen._replace(hidden=torch.cat([hidden, seen.hidden], -1)), state

    def decode(self, encoded: Encoded, ahead: Tensor) -> Tensor:
        """Parameters of the head (B, S, H, n), from known covariates (B, S, H, E) of the steps ahead."""
        hidden, tokens, behind = encoded
        covariates = torch.cat([ahead, self.candidates.contrast(behind, ahead)], -1)
        base, raw = self.decoder(hidden, *self.candidates(tokens), covariates)
        return self.head.parameters(base, raw, tokens.scale)

    def known_ahead(self, rows: Rows) -> Tensor:
        """Known covariates (B, L, E) of rows whose values may lie ahead."""
        return self.covariates(rows.numeric, rows.categories)[1]

    def quantiles(self, parameters: Tensor, scale: Scale) -> Tensor:
        """Calibrated quantiles (B, S, H, Q) in units of the scale."""
        return self.head.quantiles(parameters, self.config.quantiles, scale) + self.margins

    def forward(self, rows: Rows, *, origins: int | None = None) -> tuple[Tensor, Tokens]:
        """Parameters (B, origins, H, n) at tokens of windows, in units of the scales of these tokens, and the tokens.

        Args:
            rows: L = reach + (S - 1) * patch_length + horizon steps; the values of the last ``horizon`` are not read.
            origins: how many of the newest tokens forecast; None is all.
        """
        config = self.config
        encoded, _ = self.encode(rows.steps(slice(0, rows.values.shape[1] - config.horizon)))
        encoded = encoded.last(origins or encoded.hidden.shape[1])
        ahead = self.known_ahead(rows)[:, config.reach :].unfold(1, config.horizon, config.patch_length)
        count = encoded.hidden.shape[1]
        return self.decode(encoded, ahead[:, -count:].transpose(2, 3)), encoded.tokens
