"""Small perceptrons on one input, such as a policy's actor and critic: one call into the C core each, forward and back.

Beside a memory they would take as long as it does, most of it in PyTorch's tanh and on the way to its operators.
Shapes: M rows, F features.
"""

import ctypes
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .. import core
from ..ops.registration import must_record


class _Sizes(ctypes.Structure):
    _fields_ = [
        ("M", ctypes.c_int64),
        ("num_layers", ctypes.c_int64),
        ("widths", ctypes.POINTER(ctypes.c_int64)),
    ]


def tanh_mlps(x: Tensor, networks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """What several perceptrons, in which tanh follows every linear map, make of ``x``.

    Args:
        x: (M, F).
        networks: the weight (out, in) and bias (out) of each layer of each network, in turn.

    Returns:
        (M, out) of each network's last layer.
    """
    flat = [weight for network in networks for weight in network]
    if not _runs(x, networks, flat):
        return [_composed(x, network) for network in networks]
    x = x.contiguous()
    if must_record(x, *flat):
        return list(_Networks.apply(x, [len(network) for network in networks], *flat))
    return [_forward(x, network)[0] for network in networks]


def _runs(x: Tensor, networks: Sequence[Sequence[Tensor]], flat: Sequence[Tensor]) -> bool:
    """Whether the core takes these: float32, layers as wide as whole vectors, and nothing that traces or casts."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or not core.runs(x):
        return False
    return all(networks) and all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.shape[0] % core.LANES == 0 for tensor in flat
    )


def _composed(x: Tensor, network: Sequence[Tensor]) -> Tensor:
    for weight, bias in zip(network[::2], network[1::2], strict=True):
        x = torch.tanh(F.linear(x, weight, bias))
    return x


def _sizes(x: Tensor, network: Sequence[Tensor]) -> _Sizes:
    rows, *widths = *x.shape, *(bias.shape[0] for bias in network[1::2])
    return _Sizes(rows, len(widths) - 1, (ctypes.c_int64 * len(widths))(*widths))


def _forward(x: Tensor, network: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The last layer's outputs, and those of the layers before it."""
    *hidden, width = [bias.shape[0] for bias in network[1::2]]  # not len(): a tensor's takes longer than a layer
    y, tape = x.new_empty(x.shape[0], width), x.new_empty(x.shape[0] * sum(hidden))
    core.call("xlstm_tanh_mlp_forward", _sizes(x, network), network, x, tape, y)
    return y, tape


class _Networks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], *flat: Tensor) -> tuple[Tensor, ...]:
        outputs = [_forward(x, network) for network in _split(flat, sizes)]
        ctx.sizes = sizes
        ctx.save_for_backward(x, *flat, *(tensor for pair in outputs for tensor in pair))
        return tuple(y for y, _ in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        count = sum(ctx.sizes)
        networks, taped = _split(saved[:count], ctx.sizes), saved[count:]
        dxs, gradients = [], []
        for network, y, tape, dy in zip(networks, taped[::2], taped[1::2], dys, strict=True):
            dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
            dweights = [torch.empty_like(weight) for weight in network]
            arrays = (x, tape, y, dy.contiguous(), dx, dweights)
            core.call("xlstm_tanh_mlp_backward", _sizes(x, network), network, *arrays)
            dxs.append(dx)
            gradients += dweights
        given = [dx for dx in dxs if dx is not None]
        return sum(given[1:], start=given[0]) if given else None, None, *gradients


def _split(flat: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    rest = iter(flat)
    return [list(islice(rest, size)) for size in sizes]
