"""Finds and loads the optional C core of the compiled backend, and says how it may be called."""

import ctypes
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LANES = 16  # as in csrc/core.c: the widest vector, of which chunks and widths are multiples
PANEL = 16  # as there: columns of a matrix that lie together
INTERFACE = 2  # as there: of its functions


def _find() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("xlstm_kernels._core")
    if spec is None or spec.origin is None:
        return None
    try:
        core = ctypes.CDLL(spec.origin)  # torch is loaded by now and brings the OpenMP symbols
    except OSError:
        return None
    if not hasattr(core, "xlstm_interface") or core.xlstm_interface() != INTERFACE:
        warnings.warn(
            f"PyTorch runs instead of the core {spec.origin}, which was built from other sources: install anew",
            stacklevel=2,
        )
        return None
    core.xlstm_instruction_set(-1)
    return core


_LIBRARY = _find()  # at import, because code that is being traced cannot load a library


def load() -> ctypes.CDLL | None:
    """The core, or None where it was not built or cannot be loaded; the PyTorch path serves then."""
    return _LIBRARY


def runs(*tensors: Tensor) -> bool:
    """Whether the core takes these: float32 or narrower, and on the CPU."""
    on_cpu = all(tensor.device.type == "cpu" and tensor.dtype != torch.float64 for tensor in tensors)
    return on_cpu and load() is not None


def plain(tensor: Tensor) -> Tensor:
    """As the core reads it: float32 and contiguous."""
    return tensor if tensor.dtype == torch.float32 and tensor.is_contiguous() else tensor.float().contiguous()


def contiguous(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Each as the core reads it, None as it is.

    Inside an operator as well as before it: an exported program is called with other strides than it was traced with.
    """
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a contiguous tensor's data begin; NULL for None."""
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def call(name: str, *arguments: ctypes.Structure | Sequence[Tensor] | Tensor | None) -> None:
    """Call a function of the core; its last argument, the number of threads, is added here.

    Args:
        name: of the function.
        arguments: structures; contiguous tensors, passed as pointers to their data; several of these where the core
            takes a structure of pointers.

    Raises:
        MemoryError: it could not allocate its working memory.
    """
    library = load()
    assert library is not None
    if getattr(library, name)(*map(_argument, arguments), torch.get_num_threads()):
        raise MemoryError(f"{name} could not allocate its working memory")


def _argument(x: ctypes.Structure | Sequence[Tensor] | Tensor | None) -> Any:
    if x is None or isinstance(x, Tensor):
        return pointer(x)
    if isinstance(x, ctypes.Structure):
        return ctypes.byref(x)
    assert all(tensor.is_contiguous() for tensor in x)
    return (ctypes.c_void_p * len(x))(*[tensor.data_ptr() for tensor in x])


def whole(lanes: int) -> int:
    """Rounded up to whole vectors."""
    return (lanes + LANES - 1) // LANES * LANES


def to_panels(matrices: Tensor) -> Tensor:
    """(..., rows, columns) with the columns cut into panels that lie together: (..., columns / PANEL, rows, PANEL)."""
    return matrices.unflatten(-1, (-1, PANEL)).transpose(-3, -2).contiguous()
