"""Whether a module has the weights that it had: told bit by bit, at the cost of a step of a small stack.

Versions of tensors would be cheaper to compare, but what is done to ``parameter.data`` leaves no trace in them.
"""

import ctypes

from torch import Tensor, nn

from . import core


class SeenWeights:
    """Copies of a module's weights, on the CPU; needs the C core."""

    def __init__(self, module: nn.Module) -> None:
        self._copies = [weight.detach().clone() for weight in _weights(module)]
        count = len(self._copies)
        self._pointers = ctypes.c_void_p * count
        self._copied = self._pointers(*[copy.data_ptr() for copy in self._copies])
        self._bytes = (ctypes.c_int64 * count)(*[copy.nbytes for copy in self._copies])

    def are_those_of(self, module: nn.Module) -> bool:
        """Whether the module's weights are the same in shape, type, layout, device and value."""
        weights = _weights(module)
        if len(weights) != len(self._copies):
            return False
        for weight, copied in zip(weights, self._copies, strict=True):
            if weight.shape != copied.shape or weight.dtype != copied.dtype or weight.device != copied.device:
                return False
            if not weight.is_contiguous():
                return False
        now = self._pointers(*[weight.data_ptr() for weight in weights])
        library = core.load()
        assert library is not None
        return bool(library.xlstm_are_same(ctypes.c_int64(len(weights)), now, self._copied, self._bytes))


def _weights(module: nn.Module) -> list[Tensor]:
    """``module.parameters()`` in a tenth of its time, shared ones more than once."""
    weights: list[Tensor] = [weight for weight in module._parameters.values() if weight is not None]
    for child in module._modules.values():
        if child is not None:
            weights += _weights(child)
    return weights
