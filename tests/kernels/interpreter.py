"""Readies Triton's interpreter for a test module that runs kernels on the CPU, or skips the module with the reason."""

from typing import Any

import pytest
import torch


def require_interpreter() -> None:
    """To be called by a module before it imports Triton's kernels; conftest.py has turned the interpreter on."""
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled on this machine: pytest -m gpu", allow_module_level=True)
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    if not isinstance(interpreter.tl.zeros, interpreter.InterpretedFunction):
        pytest.skip("Triton was imported without its interpreter: set TRITON_INTERPRET=1", allow_module_level=True)
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, *rest: Any) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: self.handle.data.item()

    # Triton 3.6 takes the int() of arrays of one element, which NumPy refuses from 2.4 on.
    interpreter._patch_lang_tensor = patch_with_index
