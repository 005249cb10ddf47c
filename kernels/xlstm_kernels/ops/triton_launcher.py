"""Launches Triton kernels at the cost of a look-up, once they are compiled.

Triton looks at every argument of every call, to find out which compiled kernel fits: for twenty arguments that takes
longer than a small kernel runs. Most of it is known here, as the constants come as one object.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

_TAKES_CONSTANTS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)  # compiled kernels do
_compiled: dict[Any, tuple[Any, tuple[Any, ...], Mapping[str, Any]]] = {}


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Sequence[Tensor | float | None], constants: Mapping[str, Any]
) -> None:
    """Run ``kernel`` on a grid of programs, on the current device.

    Args:
        arguments: those of the kernel's arguments that are no constants; they come first.
        constants: all others by name, and Triton's options. Told apart by identity: the same ones must be the same
            object from call to call, and never change.
    """
    if not isinstance(kernel, JITFunction) or not _TAKES_CONSTANTS:  # the interpreter, or an old Triton
        kernel[grid](*arguments, **constants)
        return
    key = (id(kernel), id(constants), torch.cuda.current_device(), *map(_kind, arguments))
    if key in _compiled:
        compiled, values, _ = _compiled[key]
        compiled[(*grid, 1, 1)[:3]](*arguments, *values)
    else:
        compiled = kernel[grid](*arguments, **constants)
        values = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
        _compiled[key] = compiled, values, constants


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's device as the current one, at no cost where it is."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device_of(tensor)


def _kind(argument: Tensor | float | None) -> Any:
    """What a kernel is compiled for of an argument, or more: its type, and whether 16 divides it or it is 1."""
    if type(argument) is int:
        return argument if argument == 1 else (argument & 15, argument >> 31)
    if argument is None or type(argument) is float:
        return None
    return argument.dtype, argument.data_ptr() & 15  # type: ignore[union-attr]
