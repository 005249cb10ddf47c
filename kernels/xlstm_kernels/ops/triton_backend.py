"""Says whether kernels written in Triton can run here, and for which tensors; Triton itself is not imported."""

import importlib.util
import os

import torch
from torch import Tensor

# At import, as code that is being traced cannot look. The kernels hold PTX, which AMD's devices do not read.
_INSTALLED = importlib.util.find_spec("triton") is not None and torch.version.hip is None


def available() -> bool:
    """Whether Triton is installed and finds a device, or its interpreter stands in for one."""
    return _INSTALLED and (torch.cuda.is_available() or _interpreted())


def runs(*tensors: Tensor) -> bool:
    """Whether Triton's kernels take these: float32 or narrower, and on a device that it serves."""
    for tensor in tensors:
        if tensor.dtype == torch.float64 or not (tensor.is_cuda or _interpreted()):
            return False
    return _INSTALLED


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
