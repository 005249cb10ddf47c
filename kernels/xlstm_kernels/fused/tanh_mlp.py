"""Small perceptrons on one input, such as a policy's actor and critic: one call into the C core each, forward and back.

Beside a memory they would take as long as it does, most of it in PyTorch's tanh and on the way to its operators.
Shapes: M rows, F features.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .. import core
from ..ops.registration import autocasts, must_record, traced


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("M", "num_networks")),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("num_layers", "widths")),
    ]


def tanh_mlps(x: Tensor, networks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """What several perceptrons, in which tanh follows every linear map, make of ``x``.

    Args:
        x: (M, F).
        networks: the weight (out, in) and bias (out) of each layer of each network, in turn.

    Returns:
        (M, out) of each network's last layer.

    Raises:
        ValueError: ``x`` is not (M, F), a weight has no bias, or a layer does not take what the one before it gives.
    """
    _check(x, networks)
    flat = [weight for network in networks for weight in network]
    if not _runs(x, networks, flat):
        return [_composed(x, network) for network in networks]
    x = x.contiguous()
    layers = [[bias.shape[0] for bias in network[1::2]] for network in networks]
    if must_record(x, *flat):
        return list(_Networks.apply(x, layers, *flat))
    return _forward(x, layers, _sizes(x, layers), flat)[0]


def _check(x: Tensor, networks: Sequence[Sequence[Tensor]]) -> None:
    """Raise unless each network is a chain of layers that begins at x."""
    if x.ndim != 2:
        raise ValueError(f"x must be (M, F), got {tuple(x.shape)}")
    for index, network in enumerate(networks):
        if len(network) % 2:
            raise ValueError(
                f"network {index} must hold a weight and a bias for each layer, got {len(network)} tensors"
            )
        width = x.shape[1]
        for weight, bias in zip(network[::2], network[1::2], strict=True):
            if weight.shape != (len(bias), width):
                raise ValueError(
                    f"a layer of network {index} must be (out, in = {width}) and (out,), "
                    f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
                )
            width = len(bias)


def _runs(x: Tensor, networks: Sequence[Sequence[Tensor]], flat: Sequence[Tensor]) -> bool:
    """Whether the core takes these: float32, layers as wide as whole vectors, and nothing that traces or casts."""
    if not core.runs(x) or autocasts(x) or traced():
        return False
    return all(networks) and all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.shape[0] % core.LANES == 0
        for tensor in flat
    )


def _composed(x: Tensor, network: Sequence[Tensor]) -> Tensor:
    for weight, bias in zip(network[::2], network[1::2], strict=True):
        x = torch.tanh(F.linear(x, weight, bias))
    return x


def _sizes(x: Tensor, layers: list[list[int]]) -> _Sizes:
    M, features = x.shape
    widths = [width for network in layers for width in (features, *network)]
    num_layers = [len(network) for network in layers]
    integers = ctypes.c_int64
    return _Sizes(M, len(layers), (integers * len(layers))(*num_layers), (integers * len(widths))(*widths))


def _forward(
    x: Tensor, layers: list[list[int]], sizes: _Sizes, flat: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Each network's last outputs, and those of the layers before."""
    M = x.shape[0]
    outputs = [x.new_empty(M, network[-1]) for network in layers]
    tapes = [x.new_empty(M * sum(network[:-1])) for network in layers]
    core.call("xlstm_tanh_mlps_forward", sizes, flat, x, tapes, outputs)
    return outputs, tapes


class _Networks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: list[list[int]], *flat: Tensor) -> tuple[Tensor, ...]:
        ctx.sizes, ctx.num_networks = _sizes(x, layers), len(layers)
        outputs, tapes = _forward(x, layers, ctx.sizes, flat)
        ctx.save_for_backward(x, *outputs, *tapes, *flat)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        count = ctx.num_networks
        outputs, tapes, flat = saved[:count], saved[count : 2 * count], saved[2 * count :]
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dweights = [torch.empty_like(weight) for weight in flat]
        gradients = [gradient.contiguous() for gradient in given]
        core.call("xlstm_tanh_mlps_backward", ctx.sizes, flat, x, tapes, outputs, gradients, dx, dweights)
        return dx, None, *dweights
