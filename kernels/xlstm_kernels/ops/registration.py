"""How an implementation becomes a PyTorch operator: one opaque node to tracing, with a backward operator of its own.

The pattern is the same for each. Forward and backward are functions of tensors whose annotations are the schema. What
forward keeps for backward are its last outputs, its tape, which are empty unless ``record`` asks for them; so inference
keeps nothing, and tracing sees all that is kept. A Library is used because it costs half of what ``custom_op`` does;
where nothing traces, even that is more than a small kernel takes, and the functions are called straight.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

P = ParamSpec("P")
R = TypeVar("R")

_LIBRARY = torch.library.Library("xlstm_kernels", "FRAGMENT")
_IMPLEMENTATIONS: dict[Callable[..., Any], Callable[..., Any]] = {}


def register_op(
    name: str, implementation: Callable[P, R], fake: Callable[..., Any], *, device: str = "CompositeExplicitAutograd"
) -> Callable[P, R]:
    """Make the operator ``xlstm_kernels::<name>`` of a function and return it.

    Args:
        implementation: its annotations are the schema; runs with autocast off; no output may share memory with another
            output or an input.
        fake: the same arguments to empty tensors of the shapes, strides and types of the outputs.
        device: the dispatch key, such as ``CPU``; by default the implementation serves all devices.
    """
    _LIBRARY.define(name + torch.library.infer_schema(implementation, mutates_args=()))
    run = without_autocast(implementation)
    _LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"xlstm_kernels::{name}", fake, lib=_LIBRARY)
    operator = getattr(torch.ops.xlstm_kernels, name).default
    _IMPLEMENTATIONS[operator] = run
    return operator


def straight(operator: Callable[P, R]) -> Callable[P, R]:
    """What runs an operator that nothing differentiates: its implementation, where nothing traces."""
    implementation = _IMPLEMENTATIONS[operator]

    @functools.wraps(implementation)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return (operator if traced() else implementation)(*args, **kwargs)

    return run


def register_gradient(
    operator: Callable[P, R],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    *,
    num_results: int | None = None,
) -> Callable[P, Any]:
    """Differentiate an operator by ``backward``, once; return what runs it, straight where nothing traces.

    An operator that returns a list of tensors is to be called itself: straight, autograd would not look into it.

    Args:
        num_results: how many of its outputs callers get. The others are its tape, which autograd handles only where
            something traces: it takes microseconds for each output. None: all, or its one output.
    """
    implementation = _IMPLEMENTATIONS[operator]
    record = _with_lists(implementation, setup_context, backward, num_results)

    @functools.wraps(implementation)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        output: Any
        if traced() or kwargs:
            output = operator(*args, **kwargs)
        elif torch.is_grad_enabled():
            return record(*args)
        else:
            output = implementation(*args, **kwargs)
        return output if num_results is None else output[:num_results]

    def differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        return backward(ctx, *gradients[:num_results])

    assert isinstance(operator, torch._ops.OpOverload)
    torch.library.register_autograd(operator, differentiate, setup_context=setup_context, lib=_LIBRARY)
    return run


def differentiated(
    forward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    *,
    num_results: int | None = None,
) -> Callable[..., Any]:
    """A function that nothing traces, differentiated as operators are; it may take anything beside tensors."""

    class Differentiated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            setup_context(ctx, inputs, output)
            return output if num_results is None else output[:num_results]

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            _refuse_second_derivative()
            return backward(ctx, *gradients)

    return Differentiated.apply


def _with_lists(
    forward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    num_results: int | None,
) -> Callable[..., Any]:
    """``differentiated``, of a function that takes lists of tensors: autograd gets these one by one."""

    def setup_nested(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        sizes, *flat = inputs
        setup_context(ctx, _nested(flat, sizes), output)

    record = differentiated(
        lambda sizes, *flat: forward(*_nested(flat, sizes)),
        setup_nested,
        lambda ctx, *gradients: (None, *_flat(backward(ctx, *gradients))),
        num_results=num_results,
    )
    return lambda *inputs: record([len(x) if isinstance(x, list) else None for x in inputs], *_flat(inputs))


def _flat(inputs: Sequence[Any]) -> list[Any]:
    """The inputs, those in lists one by one."""
    return [x for given in inputs for x in (given if isinstance(given, list) else (given,))]


def _nested(flat: Sequence[Any], sizes: Sequence[int | None]) -> list[Any]:
    """The inverse of ``_flat``: a size is that of a list, None of what was none."""
    rest = iter(flat)
    return [next(rest) if size is None else list(islice(rest, size)) for size in sizes]


def traced() -> bool:
    """Whether a call must be seen as an operator: by a compiler, an exporter, or a mode that looks at dispatch.

    Raises:
        NotImplementedError: a transform is under way that implementations know nothing of.
    """
    if torch.compiler.is_compiling():
        return True
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        raise NotImplementedError(
            "the xLSTM ops have no rule for torch.func's transforms and forward-mode differentiation: "
            "differentiate with torch.autograd.grad or backward, and put what vmap would map over into the batch"
        )
    return is_in_torch_dispatch_mode()


def _refuse_second_derivative() -> None:
    """Raise where a backward pass is to be differentiated: without a word, the second derivative would be zero."""
    if torch.is_grad_enabled():
        raise NotImplementedError("the xLSTM ops have first derivatives only: differentiate with create_graph=False")


def must_record(*inputs: Tensor | None) -> bool:
    """Whether a backward pass can come."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on where the tensor is; the meta device has none to ask."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, its matrix products in the types that it chose itself."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, Tensor)
        if not autocasts(first):
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return run
