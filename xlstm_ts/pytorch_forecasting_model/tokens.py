"""One layout for the tokens of encoder and decoder: embedded covariates, of which each period sees its own.

Shapes: B batch, S steps, R reals and C categoricals as the data set orders them, F features, D hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from pytorch_forecasting.models.nn import MultiEmbedding
from torch import Tensor, nn

PERIODS = ("encoder", "decoder")


class CovariateTokens(nn.Module):
    """Maps the covariates of a step to a token; what a period must not see is zero in it.

    Encoder and decoder share the map, so that the effect of a month or a price is learned from both. A flag tells them
    apart.

    Args:
        embeddings: of the categorical variables.
        x_reals: names of the columns of the data set's continuous tensor.
        seen: for each of ``PERIODS`` the names of the variables, real and categorical, that it sees.
        hidden_size: D.
    """

    def __init__(
        self, embeddings: MultiEmbedding, *, x_reals: Sequence[str], seen: Mapping[str, Sequence[str]], hidden_size: int
    ) -> None:
        super().__init__()
        used = set().union(*seen.values())
        self.reals = [name for name in x_reals if name in used]
        self.categoricals = [name for name in embeddings.names() if name in used]
        self.embeddings = embeddings
        self.real_columns = [x_reals.index(name) for name in self.reals]
        widths = dict.fromkeys(self.reals, 1) | {
            name: embeddings.output_size[name] for name in self.categoricals
        }  # in the order of the features
        for period in PERIODS:
            mask = [float(name in seen[period]) for name, width in widths.items() for _ in range(width)]
            self.register_buffer(f"{period}_mask", torch.tensor([*mask, period == "decoder"]), persistent=False)  # (F,)
        self.projection = nn.Linear(sum(widths.values()) + 1, hidden_size)

    def forward(self, reals: Tensor, categoricals: Tensor, period: str) -> Tensor:
        """Tokens (B, S, D) of continuous (B, S, R) and categorical (B, S, C) covariates of ``period``."""
        embedded = self.embeddings(categoricals)
        features = torch.cat(
            [
                reals[..., self.real_columns],
                *(embedded[name] for name in self.categoricals),
                reals.new_ones(*reals.shape[:2], 1),
            ],
            dim=-1,
        )  # (B, S, F)
        return self.projection(features * self.get_buffer(f"{period}_mask"))
