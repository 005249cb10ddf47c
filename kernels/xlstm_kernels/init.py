"""Initialisers of the paper's blocks.

Sources: Beck et al. 2024 (arXiv 2405.04517) and its published code; "small init" is Nguyen & Salazar 2019,
the output projections' width follows Wang & Komatsuzaki (GPT-J).
"""

import math

import torch
from torch import Tensor, nn


def small_init_(weight: Tensor, embedding_dim: int) -> Tensor:
    """Input projections: normal with variance 2 / (5 D)."""
    return nn.init.normal_(weight, std=math.sqrt(2 / (5 * embedding_dim)))


def output_init_(weight: Tensor, embedding_dim: int, num_blocks: int) -> Tensor:
    """Projections back into the residual stream: normal with standard deviation 2 / (num_blocks sqrt(D))."""
    return nn.init.normal_(weight, std=2 / (num_blocks * math.sqrt(embedding_dim)))


def linspace_forget_bias(num_heads: int) -> Tensor:
    """mLSTM forget-gate bias (NH,): from 3 to 6, so that heads remember over different spans from the start."""
    return torch.linspace(3.0, 6.0, num_heads)


def power_law_forget_bias(head_dim: int, *, block_index: int, num_blocks: int) -> Tensor:
    """sLSTM forget-gate bias (DH,): from 5 down to -7 over the units, more of them slow in the later blocks."""
    depth = block_index / max(num_blocks - 1, 1)
    unit = torch.arange(head_dim) / max(head_dim - 1, 1)
    return 5.0 - 12.0 * unit ** (0.3 + 1.3 * depth)
