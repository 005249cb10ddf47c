"""Launches Triton kernels at the cost of a look-up once they are compiled, and for less where sizes stay the same.

Triton looks at every argument of every call, to find out which compiled kernel fits: for twenty arguments that takes
longer than a small kernel runs. Most of it is known here, as the constants come as one object.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import or_
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

_DIRECT = hasattr(triton, "knobs")  # since 3.4, whose compiled kernels take all arguments, in order
LAYOUTS = 512  # of arrays, for which an operator keeps its launches; sequences may have many lengths
ALIGNMENT = 16  # bytes, which Triton compiles pointers for


class _Compiled:
    """A compiled kernel on its device, with what Triton would look up at every launch."""

    def __init__(self, kernel: Any, values: tuple[Any, ...], constants: Mapping[str, Any]) -> None:
        self.values = values  # of the constants, in the kernel's order
        self._kernel, self._run = kernel, kernel.run
        self._constants = constants  # kept alive: they are known by their address
        self._device, self._stream = torch.cuda.current_device(), triton.runtime.driver.active.get_current_stream
        self._fixed = kernel.function, kernel.packed_metadata, None, None, None  # Triton calls hooks that do nothing

    def start(self, grid: tuple[int, ...], arguments: Sequence[Any]) -> None:
        """Run it; ``arguments`` are all of the kernel's, tensors as pointers, which Triton does not look up again."""
        if _hooked():
            self._kernel[grid](*arguments)
        else:
            self._run(*grid, self._stream(self._device), *self._fixed, *arguments)


_compiled: dict[Any, _Compiled] = {}


class Launch:
    """A kernel whose arguments are all set but for tensors: once it ran, nothing is looked at but where these lie.

    Args:
        grid: of programs.
        numbers: those of the kernel's arguments that follow its tensors.
        constants: as for ``launch``.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, ...], numbers: tuple[float, ...], constants: Mapping[str, Any]
    ) -> None:
        self._kernel, self._grid, self._numbers, self._constants = kernel, _three(grid), numbers, constants
        self._compiled: _Compiled | None = None
        self._rest: tuple[Any, ...] = ()  # of its arguments, behind the tensors

    def __call__(self, *tensors: Tensor | None) -> None:
        """Run it on the current device; that and the tensors' types, None among them, are the same at every call."""
        pointers = [0 if x is None else x.data_ptr() for x in tensors]
        aligned = reduce(or_, pointers) % ALIGNMENT == 0
        if aligned and self._compiled is not None:
            self._compiled.start(self._grid, (*pointers, *self._rest))
            return
        compiled = launch(self._kernel, self._grid, (*tensors, *self._numbers), self._constants)
        if aligned and compiled is not None:
            self._compiled, self._rest = compiled, (*self._numbers, *compiled.values)


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Sequence[Tensor | float | None], constants: Mapping[str, Any]
) -> _Compiled | None:
    """Run ``kernel`` on a grid of programs, on the current device, and return it as it was compiled.

    Args:
        arguments: those of the kernel's arguments that are no constants; they come first.
        constants: all others by name, and Triton's options. Told apart by identity: the same ones must be the same
            object from call to call, and never change.
    """
    if not isinstance(kernel, JITFunction) or not _DIRECT:  # the interpreter, or an old Triton
        kernel[grid](*arguments, **constants)
        return None
    given = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    key = (id(kernel), id(constants), torch.cuda.current_device(), *map(_kind, arguments, given))
    if key in _compiled:
        found = _compiled[key]
        found.start(_three(grid), (*given, *found.values))
        return found
    compiled = kernel[grid](*arguments, **constants)
    values = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
    return _compiled.setdefault(key, _Compiled(compiled, values, constants))


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's device as the current one, at no cost where it is."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device_of(tensor)


def _three(grid: tuple[int, ...]) -> tuple[int, ...]:
    return (*grid, 1, 1)[:3]


def _hooked() -> bool:
    """Whether someone, such as a profiler, wants to hear of launches."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def _kind(argument: Tensor | float | None, value: float | None) -> Any:
    """What a kernel is compiled for of an argument, or more: its type, and whether 16 divides it or it is 1."""
    if not isinstance(value, int):
        return None
    if isinstance(argument, Tensor):
        return argument.dtype, value % ALIGNMENT
    return value if value == 1 else (value % ALIGNMENT, value >> 31)
