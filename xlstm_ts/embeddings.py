"""Covariates of rows as one vector a step: standardised numbers, and embeddings of categories.

Shapes: B batch, L steps, C numeric covariates, K categorical covariates, E covariate channels.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class CovariateSizes:
    """How many covariates of one kind there are.

    Attributes:
        numeric: how many are numbers.
        cardinalities: for each categorical one, how many codes it has, the unknown category's included.
    """

    numeric: int = 0
    cardinalities: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        """Width of their vector."""
        return self.numeric + sum(embedding_width(size) for size in self.cardinalities)


def embedding_width(cardinality: int) -> int:
    """Width of a category's embedding: its square root tells many categories apart, 16 is enough for thousands."""
    return min(16, 1 + int(cardinality**0.5))


class CovariateEmbedding(nn.Module):
    """One vector for each step, in three parts: static, known ahead, known up to now.

    Args:
        static, known, past: sizes of the three kinds; rows hold their columns in this order.
    """

    def __init__(self, static: CovariateSizes, known: CovariateSizes, past: CovariateSizes) -> None:
        super().__init__()
        self.kinds = (static, known, past)
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, embedding_width(size)) for kind in self.kinds for size in kind.cardinalities
        )
        self.splits = [kind.channels for kind in self.kinds]

    def forward(self, numeric: Tensor, categories: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Static (B, L, E), known (B, L, E) and past (B, L, E) channels, each with its own E, 0 where there is none."""
        embedded = [embedding(categories[..., k]) for k, embedding in enumerate(self.embeddings)]
        stops = list(accumulate(len(kind.cardinalities) for kind in self.kinds))
        numbers = numeric.split([kind.numeric for kind in self.kinds], -1)
        starts = [0, *stops[:-1]]
        static, known, past = (
            torch.cat([numbers[k], *embedded[start:stop]], -1)
            for k, (start, stop) in enumerate(zip(starts, stops, strict=True))
        )
        return static, known, past
