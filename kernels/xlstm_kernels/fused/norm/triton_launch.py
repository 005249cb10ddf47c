"""The head norm, skip and output gate as a PyTorch operator: one launch forwards, one backwards and a sum.

Shapes: B batch, S sequence, NH heads, DH head dim, E = NH * DH channels.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ...ops.registration import register_gradient, register_op, straight
from ..strides import in_units_of
from .triton_kernels import norm_backward, norm_forward

TILE = 2048  # numbers, of four warps
SHARES = 1024  # programs backwards, about: each sums its steps up in registers


def norm_triton(
    h: Tensor,
    weight: Tensor,
    eps: float,
    convolved: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(norm(h) * weight + skip * convolved) * SiLU(gate), (B, S, E) in ``dtype``, of ``h`` (B, S, NH, DH).

    Args:
        convolved, gate: (B, S, E).
        weight, skip: (E,).
    """
    gate = None if gate is None else in_units_of(gate, h.shape[-1])
    return _run(h.contiguous(), weight, eps, convolved, skip, gate, dtype)


def _forward(
    h: Tensor,
    weight: Tensor,
    eps: float,
    convolved: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    B, S, NH, DH = h.shape
    y = h.new_empty(B, S, NH * DH, dtype=dtype)
    options = _options(NH, DH, skip, gate)
    with torch.cuda.device_of(h):
        norm_forward[(triton.cdiv(B * S, options["BT"]), NH)](
            *(h, weight, convolved, skip, gate, y, B * S, S, *_strides(gate, DH), eps), **options
        )
    return y


def _forward_fake(
    h: Tensor,
    weight: Tensor,
    eps: float,
    convolved: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    B, S, NH, DH = h.shape
    return h.new_empty(B, S, NH * DH, dtype=dtype)


_Gradients = tuple[Tensor, Tensor, Tensor, Tensor]  # of h, convolved, gate; of weight and skip (1 or 2, E)


def _backward(
    dy: Tensor,
    h: Tensor,
    weight: Tensor,
    eps: float,
    convolved: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
) -> _Gradients:
    B, S, NH, DH = h.shape
    dh, dconvolved, dgate, total = _backward_fake(dy, h, weight, eps, convolved, skip, gate)
    options = _options(NH, DH, skip, gate)
    tiles = triton.cdiv(B * S, options["BT"])
    each = triton.cdiv(tiles * NH, SHARES)
    shares = triton.cdiv(tiles, each)
    totals = torch.empty(shares, *total.shape, dtype=torch.float32, device=h.device)
    arrays = (dy.contiguous(), h, weight, convolved, skip, gate, dh, dconvolved, dgate, totals)
    with torch.cuda.device_of(h):
        norm_backward[(shares, NH)](*arrays, B * S, S, *_strides(gate, DH), eps, each, **options)
    return dh, dconvolved, dgate, totals.sum(0)


def _backward_fake(
    dy: Tensor,
    h: Tensor,
    weight: Tensor,
    eps: float,
    convolved: Tensor | None,
    skip: Tensor | None,
    gate: Tensor | None,
) -> _Gradients:
    """Room for the gradients, with nothing for what was not given."""
    dconvolved, dgate = (dy.new_empty(0) if x is None else x.new_empty(x.shape) for x in (convolved, gate))
    return (
        h.new_empty(h.shape),
        dconvolved,
        dgate,
        weight.new_empty((1 if skip is None else 2, *weight.shape), dtype=torch.float32),
    )


def _options(NH: int, DH: int, skip: Tensor | None, gate: Tensor | None) -> dict[str, Any]:
    D = triton.next_power_of_2(DH)
    sizes = {"NH": NH, "DH": DH, "D": D, "BT": max(1, min(64, TILE // D))}
    return {**sizes, "WITH_SKIP": skip is not None, "GATED": gate is not None, "num_warps": 4}


def _strides(gate: Tensor | None, DH: int) -> tuple[int, int]:
    return (0, 0) if gate is None else (gate.stride(0) // DH, gate.stride(1) // DH)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, weight, ctx.eps, convolved, skip, gate, _ = inputs
    ctx.save_for_backward(h, weight, convolved, skip, gate)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    h, weight, convolved, skip, gate = ctx.saved_tensors
    dh, dconvolved, dgate, totals = _run_backward(dy, h, weight, ctx.eps, convolved, skip, gate)
    dweight, *dskip = totals.unbind(0)
    given = zip((dconvolved, dskip[0] if dskip else None, dgate), (convolved, skip, gate), strict=True)
    rest = (None if x is None or dx is None else dx.to(x.dtype) for dx, x in given)
    return dh, dweight.to(weight.dtype), None, *rest, None


# For all devices: Triton's interpreter runs the same kernels on the CPU.
_operator = register_op("norm_triton", _forward, _forward_fake)
_run_backward = straight(register_op("norm_triton_backward", _backward, _backward_fake))
_run = register_gradient(_operator, _setup_context, _differentiate)
