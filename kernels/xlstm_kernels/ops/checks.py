"""What both recurrences check of their arguments before they run."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], layout: str) -> None:
    """Raise ValueError unless ``tensor`` has the expected shape, which ``layout`` spells in letters."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must be {layout} = {expected}, got {tuple(tensor.shape)}")


def check_resets(resets: Tensor | None, batch_size: int, sequence_length: int) -> None:
    """Raise unless ``resets`` is None or a boolean (B, S) tensor."""
    if resets is None:
        return
    check_shape("resets", resets, (batch_size, sequence_length), "(B, S)")
    if resets.dtype != torch.bool:
        raise TypeError(f"resets must be bool, got {resets.dtype}; convert with resets.bool()")


def resolve_backend(backend: str, usable: Mapping[str, T]) -> T:
    """The implementation to run, of those usable for the tensors at hand: the last for ``auto``, else by name."""
    if backend == "auto":
        return list(usable.values())[-1]
    if backend not in usable:
        raise ValueError(f"backend must be one of {('auto', *usable)} for these tensors, got {backend!r}")
    return usable[backend]


def gate_dtype(*tensors: Tensor) -> torch.dtype:
    """Gates, sums and states are float32 whatever the operands are; float64 stays for exact checks."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
