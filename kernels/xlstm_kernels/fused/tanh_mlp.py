"""Small perceptrons on one input, such as a policy's actor and critic: one call into the C core each, forward and back.

Beside a memory they would take as long as it does, most of it in PyTorch's tanh and on the way to its operators.
Shapes: M rows, F features.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

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
    if x.ndim != 2:
        raise ValueError(f"x must be (M, F), got {tuple(x.shape)}")
    _check_chains(x.shape[1], networks)
    flat = [weight for network in networks for weight in network]
    if not (_takes(x) and _has_kernels(networks, flat)):
        return [_composed(x, network) for network in networks]
    x = x.contiguous()
    layers = _widths(networks)
    if must_record(x, *flat):
        return list(_Networks.apply(x, layers, *flat))
    return _forward(x, layers, _Shapes.of(x.shape[1], layers).sizes(x), flat)[0]


class TanhStepper:
    """A snapshot of small perceptrons for few rows at a time, without gradients: ``tanh_mlps``, checked once.

    The weights are copied: build a new stepper after they have learnt.

    Args:
        networks: as ``tanh_mlps`` takes them, none without a layer.

    Raises:
        ValueError: a network has no layer, or one that does not take what the one before it gives.

    >>> step = TanhStepper([[weight, bias], [other_weight, other_bias]])
    >>> pi, vf = step(x)                     # x (M, F)
    """

    def __init__(self, networks: Sequence[Sequence[Tensor]]) -> None:
        if not networks or not all(networks):
            raise ValueError(f"each network must have a layer, got {[len(network) // 2 for network in networks]}")
        self._features = networks[0][0].shape[1]
        _check_chains(self._features, networks)
        self._networks = [[weight.detach().clone() for weight in network] for network in networks]
        self._flat = [weight for network in self._networks for weight in network]
        self._layers = _widths(networks)
        self._shapes = _Shapes.of(self._features, self._layers)
        self._has_kernels = _has_kernels(self._networks, self._flat)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """(M, out) of each network's last layer, of ``x`` (M, F).

        Raises:
            ValueError: ``x`` is not (M, F).
        """
        if x.ndim != 2 or x.shape[1] != self._features:
            raise ValueError(f"x must be (M, {self._features}), got {tuple(x.shape)}")
        if not (self._has_kernels and _takes(x)):
            return [_composed(x, network) for network in self._networks]
        return _forward(x.contiguous(), self._layers, self._shapes.sizes(x), self._flat)[0]


def _check_chains(features: int, networks: Sequence[Sequence[Tensor]]) -> None:
    """Raise unless each network is a chain of layers that begins with this many features."""
    for index, network in enumerate(networks):
        if len(network) % 2:
            raise ValueError(
                f"network {index} must hold a weight and a bias for each layer, got {len(network)} tensors"
            )
        width = features
        for weight, bias in zip(network[::2], network[1::2], strict=True):
            if weight.shape != (len(bias), width):
                raise ValueError(
                    f"a layer of network {index} must be (out, in = {width}) and (out,), "
                    f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
                )
            width = len(bias)


def _takes(x: Tensor) -> bool:
    """Whether the core takes this input: float32, on a CPU, and nothing that traces or casts."""
    return core.runs(x) and not autocasts(x) and not traced()


def _has_kernels(networks: Sequence[Sequence[Tensor]], flat: Sequence[Tensor]) -> bool:
    """Whether the core takes these: float32, layers as wide as whole vectors."""
    return all(networks) and all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.shape[0] % core.LANES == 0
        for tensor in flat
    )


def _composed(x: Tensor, network: Sequence[Tensor]) -> Tensor:
    for weight, bias in zip(network[::2], network[1::2], strict=True):
        x = torch.tanh(F.linear(x, weight, bias))
    return x


def _widths(networks: Sequence[Sequence[Tensor]]) -> list[list[int]]:
    return [[bias.shape[0] for bias in network[1::2]] for network in networks]


class _Shapes(NamedTuple):
    """Of networks, as the core reads them."""

    num_networks: int
    num_layers: ctypes.Array[ctypes.c_int64]
    widths: ctypes.Array[ctypes.c_int64]  # of each network its features, then its layers

    @classmethod
    def of(cls, features: int, layers: list[list[int]]) -> Self:
        widths = [width for network in layers for width in (features, *network)]
        integers = ctypes.c_int64
        num_layers = (integers * len(layers))(*[len(network) for network in layers])
        return cls(len(layers), num_layers, (integers * len(widths))(*widths))

    def sizes(self, x: Tensor) -> _Sizes:
        return _Sizes(x.shape[0], *self)


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
        ctx.sizes, ctx.num_networks = _Shapes.of(x.shape[1], layers).sizes(x), len(layers)
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
