"""The causal convolution with SiLU, and what an mLSTM reads off it, as one operator for CUDA tensors."""

from torch import Tensor

from ...ops import triton_backend

LONGEST = 15  # kernel sizes up to this, whose gradients fill one tile together with the bias's
WIDEST = 64  # blocks of the maps up to this


def runs(x: Tensor, kernel_size: int, block_size: int = 1) -> bool:
    """Whether the operator takes this input, convolution and maps."""
    return x.is_cuda and kernel_size <= LONGEST and block_size <= WIDEST and triton_backend.runs(x)


def conv(
    x: Tensor, window: Tensor, weights: list[Tensor], resets: Tensor | None, lengths: Tensor | None
) -> list[Tensor]:
    """SiLU of the convolution and the window after it, with maps q, k, v, i and f as well: see ``conv_triton``."""
    from .triton_launch import conv_triton  # imports Triton, so only where it is asked for

    return conv_triton(x, window, weights, resets, lengths)
