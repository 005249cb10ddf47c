"""How an implementation becomes a PyTorch operator: one opaque node to tracing, with a backward operator of its own.

The pattern is the same for each. Forward and backward are functions of tensors whose annotations are the schema. What
forward keeps for backward are its last outputs, its tape, which are empty unless ``record`` asks for them; so inference
keeps nothing, and tracing sees all that is kept. A Library is used because it costs half of what ``custom_op`` does.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_LIBRARY = torch.library.Library("xlstm_kernels", "FRAGMENT")


def register_op(
    name: str, implementation: Callable[P, R], fake: Callable[..., Any], *, device: str = "CompositeExplicitAutograd"
) -> Callable[P, R]:
    """Make ``xlstm_kernels::<name>`` of a function and return it.

    Args:
        implementation: its annotations are the schema; runs with autocast off; no output may share memory with another
            output or an input.
        fake: the same arguments to empty tensors of the shapes, strides and types of the outputs.
        device: the dispatch key, such as ``CPU``; by default the implementation serves all devices.
    """
    _LIBRARY.define(name + torch.library.infer_schema(implementation, mutates_args=()))
    _LIBRARY.impl(name, without_autocast(implementation), device)
    torch.library.register_fake(f"xlstm_kernels::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.xlstm_kernels, name).default


def register_gradient(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Differentiate ``xlstm_kernels::<name>`` by ``backward``, once."""

    def differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # without a word, the second derivative would come out as zero
            raise NotImplementedError(
                "the xLSTM ops have first derivatives only: differentiate with create_graph=False"
            )
        return backward(ctx, *gradients)

    torch.library.register_autograd(f"xlstm_kernels::{name}", differentiate, setup_context=setup_context, lib=_LIBRARY)


def must_record(*inputs: Tensor | None) -> bool:
    """Whether a backward pass can come."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, its matrix products in the types that it chose itself."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, Tensor)
        if not torch.is_autocast_enabled(first.device.type):
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return run
