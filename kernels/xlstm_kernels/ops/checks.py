"""What the recurrences check of their arguments before they run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..state import LSTMState, mLSTMState, sLSTMState

LAYOUTS = {
    mLSTMState: ("(B, NH, DK, DV)", "(B, NH, DK)", "(B, NH)"),
    sLSTMState: ("(B, NH, DH)",) * 4,
    LSTMState: ("(B, NH, DH)",) * 2,
}


def check_tensor(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; convert it with torch.as_tensor")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], layout: str) -> None:
    """Raise ValueError unless ``tensor`` has the expected shape, which ``layout`` spells in letters.

    Raise TypeError where it is no tensor.
    """
    check_tensor(name, tensor)
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must be {layout} = {expected}, got {tuple(tensor.shape)}")


def check_resets(resets: Tensor | None, batch_size: int, sequence_length: int) -> None:
    """Raise unless ``resets`` is None or a boolean (B, S) tensor."""
    if resets is None:
        return
    check_shape("resets", resets, (batch_size, sequence_length), "(B, S)")
    if resets.dtype != torch.bool:
        raise TypeError(f"resets must be bool, got {resets.dtype}; convert with resets.bool()")


def check_dtypes(operands: Mapping[str, Tensor]) -> torch.dtype:
    """Raise TypeError unless all are floating point, and all or none float64; return the dtype of gates and states.

    Gates, sums and states are float32 whatever the operands are; float64 stays for exact checks.
    """
    num_double = 0
    for name, tensor in operands.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}; convert with {name}.float()")
        num_double += tensor.dtype == torch.float64
    if 0 < num_double < len(operands):
        names = ", ".join(f"{name} {tensor.dtype}" for name, tensor in operands.items())
        raise TypeError(f"operands are all float64 or none is, got {names}; convert them with .to() to one type")
    return torch.float64 if num_double else torch.float32


def check_state(
    state: Any, kind: type[Any], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, *, name: str = "state"
) -> None:
    """Raise TypeError unless a given state is of its kind and of the dtype that the operands ask for, and ValueError
    unless its parts have the given shapes."""
    if not isinstance(state, kind):
        raise TypeError(f"{name} must be an {kind.__name__}, got {type(state).__name__}; None is the empty memory")
    for field, leaf, shape, layout in zip(kind._fields, state, shapes, LAYOUTS[kind], strict=True):
        check_shape(f"{name}.{field}", leaf, shape, layout)
        if leaf.dtype != dtype:
            raise TypeError(f"{name}.{field} must be {dtype} for these operands, got {leaf.dtype}; convert with .to()")


def check_devices(tensors: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError unless all tensors are where the first one is."""
    first, reference = next(iter(tensors.items()))
    assert reference is not None
    device = reference.device
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device} but {first} on {device}; move it with {name}.to({str(device)!r})"
            )


def resolve_backend(backend: str, usable: Sequence[str]) -> str:
    """The name of the implementation to run, of those usable for the tensors at hand: the last for ``auto``."""
    if backend == "auto":
        return usable[-1]
    if backend not in usable:
        raise ValueError(f"backend must be one of {('auto', *usable)} for these tensors, got {backend!r}")
    return backend
