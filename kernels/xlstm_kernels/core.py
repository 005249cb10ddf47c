"""Finds and loads the optional C core of the compiled backend, and says how it may be called."""

import ctypes
import importlib.util

import torch
from torch import Tensor


def _find() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("xlstm_kernels._core")
    if spec is None or spec.origin is None:
        return None
    try:
        core = ctypes.CDLL(spec.origin)  # torch is loaded by now and brings the OpenMP symbols
    except OSError:
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


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a contiguous tensor's data begin; NULL for None."""
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
