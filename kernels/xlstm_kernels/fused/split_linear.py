"""A linear map whose output is read in two halves by two operators, without a copy between their gradients and its own.

Differentiating a split puts both halves' gradients side by side first: at the width of a block, as long as a kernel.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.registration import autocasts


def split_linear(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves of x (..., D) times ``weight`` (2 E, D) transposed, (..., E) each; under autocast in its type."""
    if autocasts(x):
        half = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(half), weight.to(half)
    return _SplitLinear.apply(x, weight)


class _SplitLinear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y = F.linear(x, weight)
        E = len(weight) // 2
        return y[..., :E], y[..., E:]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        halves = [gradient.flatten(0, -2) for gradient in gradients]
        dx = dweight = None
        with torch.autocast(x.device.type, enabled=False):
            if wants_x:
                first, second = weight.chunk(2)
                dx = (halves[0] @ first).addmm_(halves[1], second).view_as(x)
            if wants_weight:
                dweight = torch.cat([half.T @ x.flatten(0, -2) for half in halves])
        return dx, dweight
