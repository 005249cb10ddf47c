"""The head norm, skip and output gate as a PyTorch operator: one launch forwards, one backwards and a sum.

Shapes: B batch, S sequence, NH heads, DH head dim, E = NH * DH channels.
"""

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from ...ops.registration import register_gradient, register_op, straight
from ...ops.triton_launcher import launch, on_device_of
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
    constants = _constants(NH, DH, skip is not None, gate is not None)
    arguments = (h, weight, convolved, skip, gate, y, B * S, S, *_strides(gate, DH), eps)
    with on_device_of(h):
        launch(norm_forward, (triton.cdiv(B * S, constants["BT"]), NH), arguments, constants)
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
    constants = _constants(NH, DH, skip is not None, gate is not None)
    tiles = triton.cdiv(B * S, constants["BT"])
    each = triton.cdiv(tiles * NH, SHARES)
    shares = triton.cdiv(tiles, each)
    totals = torch.empty(shares, *total.shape, dtype=torch.float32, device=h.device)
    arrays = (dy.contiguous(), h, weight, convolved, skip, gate, dh, dconvolved, dgate, totals)
    with on_device_of(h):
        launch(norm_backward, (shares, NH), (*arrays, B * S, S, *_strides(gate, DH), eps, each), constants)
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


@functools.cache
def _constants(NH: int, DH: int, with_skip: bool, gated: bool) -> dict[str, Any]:
    """All that the kernels are compiled for: one object each, by which their launches are known."""
    D = triton.next_power_of_2(DH)
    sizes = {"NH": NH, "DH": DH, "D": D, "BT": max(1, min(64, TILE // D))}
    return {**sizes, "WITH_SKIP": with_skip, "GATED": gated, "num_warps": 4}


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
