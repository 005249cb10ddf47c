"""Initialisers of the blocks.

Sources: Beck et al. 2024 (arXiv 2405.04517), Beck et al. 2025 (xLSTM 7B, arXiv 2503.13427) and their published code;
"small init" is Nguyen & Salazar 2019, the output projections' width follows Wang & Komatsuzaki (GPT-J).
"""

import math

import torch
from torch import Tensor, nn

from .checks import check_choice

INPUT_GATE_INITS = ("normal", "closed")
RECURRENT_INITS = ("zeros", "uniform")


def small_init_(weight: Tensor, embedding_dim: int) -> Tensor:
    """Input projections: normal with variance 2 / (5 D)."""
    return nn.init.normal_(weight, std=math.sqrt(2 / (5 * embedding_dim)))


def output_init_(weight: Tensor, embedding_dim: int, num_blocks: int) -> Tensor:
    """Projections back into the residual stream: normal with standard deviation 2 / (num_blocks sqrt(D))."""
    return nn.init.normal_(weight, std=2 / (num_blocks * math.sqrt(embedding_dim)))


def input_gate_bias(num_heads: int, init: str) -> Tensor:
    """mLSTM input-gate bias (NH,): ``normal`` is N(0, 0.1), ``closed`` is -10, so that large models start still."""
    check_choice("input_gate_init", init, INPUT_GATE_INITS)
    bias = torch.empty(num_heads)
    return bias.fill_(-10.0) if init == "closed" else bias.normal_(std=0.1)


def head_norm_eps(input_gate_init: str) -> float:
    """The head norm's epsilon that goes with the input gate's bias: outputs near exp(-10) leave the gain to it."""
    return 1e-6 if input_gate_init == "closed" else 1e-5


def linspace_forget_bias(num_heads: int) -> Tensor:
    """mLSTM forget-gate bias (NH,): from 3 to 6, so that heads remember over different spans from the start."""
    return torch.linspace(3.0, 6.0, num_heads)


def power_law_forget_bias(head_dim: int, *, block_index: int, num_blocks: int) -> Tensor:
    """sLSTM forget-gate bias (DH,): from 5 down to -7 over the units, more of them slow in the later blocks."""
    depth = block_index / max(num_blocks - 1, 1)
    unit = torch.arange(head_dim) / max(head_dim - 1, 1)
    return 5.0 - 12.0 * unit ** (0.3 + 1.3 * depth)


def recurrent_init_(weight: Tensor, init: str) -> Tensor:
    """sLSTM recurrent weight (..., DH, DH): ``zeros``, or ``uniform`` within 1 / sqrt(DH)."""
    check_choice("recurrent_init", init, RECURRENT_INITS)
    if init == "zeros":
        return nn.init.zeros_(weight)
    bound = 1 / math.sqrt(weight.shape[-1])
    return nn.init.uniform_(weight, -bound, bound)
