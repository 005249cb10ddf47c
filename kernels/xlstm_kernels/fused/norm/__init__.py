"""The head norm, with a learnable skip and an output gate where there are any, as one operator for CUDA tensors."""

import torch
from torch import Tensor

from ...ops import triton_backend

WIDEST = 4096  # heads up to this, of which a program holds a step


def runs(h: Tensor) -> bool:
    """Whether the operator takes this input."""
    return h.is_cuda and h.shape[-1] <= WIDEST and triton_backend.runs(h)


def norm(
    h: Tensor,
    weight: Tensor,
    eps: float,
    convolved: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """(norm(h) * weight + skip * convolved) * SiLU(gate), in the type of ``h`` unless told: see ``norm_triton``."""
    from .triton_launch import norm_triton  # imports Triton, so only where it is asked for

    return norm_triton(h, weight, eps, convolved, skip, gate, dtype or h.dtype)
