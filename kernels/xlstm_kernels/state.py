"""Recurrent states as values: immutable trees of tensors, batch first, and the functions that handle them as trees.

Shapes: B batch, NH heads, DK / DV key / value head dim, DH head dim, D embedding dim, K convolution kernel size.
A state is a tensor or a tuple of states; every function here returns a new tree and leaves its arguments alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

StateTree: TypeAlias = Any  # a tensor or a tuple of trees: recursive, which NamedTuples keep mypy from following
T = TypeVar("T")


class mLSTMState(NamedTuple):
    """Matrix memory ``c`` (B, NH, DK, DV), normaliser ``n`` (B, NH, DK) and stabiliser ``m`` (B, NH).

    The memory in the paper's unscaled terms is ``c * exp(m)``: ``m`` is a scale and carries no gradient.
    """

    c: Tensor
    n: Tensor
    m: Tensor


class sLSTMState(NamedTuple):
    """Hidden state ``h``, scalar memory ``c``, normaliser ``n`` and stabiliser ``m``, each (B, NH, DH)."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


class LSTMState(NamedTuple):
    """Hidden state ``h`` and memory ``c`` of the plain LSTM, each (B, NH, DH)."""

    h: Tensor
    c: Tensor


class BlockState(NamedTuple):
    """What a residual block carries: the convolution's last inputs ``conv`` (B, K - 1, D) and its cell's state."""

    conv: Tensor
    cell: mLSTMState | sLSTMState


StackState: TypeAlias = tuple[BlockState, ...]

# torch.load reads only classes that it was told of, and torch.export.save those that have a name of their own.
torch.serialization.add_safe_globals([mLSTMState, sLSTMState, LSTMState, BlockState])
for _kind in (mLSTMState, sLSTMState, LSTMState, BlockState):
    _register_namedtuple(_kind, serialized_type_name=f"xlstm_kernels.{_kind.__name__}")


def initial_mlstm_state(
    batch_size: int,
    num_heads: int,
    qk_head_dim: int,
    v_head_dim: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> mLSTMState:
    """The state before any input: empty memory, ``m = -inf``."""
    rows = (batch_size, num_heads)
    return mLSTMState(
        c=torch.zeros(*rows, qk_head_dim, v_head_dim, device=device, dtype=dtype),
        n=torch.zeros(*rows, qk_head_dim, device=device, dtype=dtype),
        m=torch.full(rows, -torch.inf, device=device, dtype=dtype),
    )


def initial_slstm_state(
    batch_size: int,
    num_heads: int,
    head_dim: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> sLSTMState:
    """The state before any input: ``h = c = n = 0``, ``m = -inf``."""
    shape = (batch_size, num_heads, head_dim)
    h, c, n = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(3))
    return sLSTMState(h, c, n, m=torch.full(shape, -torch.inf, device=device, dtype=dtype))


def initial_lstm_state(
    batch_size: int,
    num_heads: int,
    head_dim: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> LSTMState:
    """The state before any input: ``h = c = 0``."""
    shape = (batch_size, num_heads, head_dim)
    return LSTMState(*(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))


def map_state(function: Callable[..., Tensor], state: T, *others: T) -> T:
    """Apply ``function`` to each tensor of ``state`` (and its counterparts in ``others``); same tree out."""
    if isinstance(state, Tensor):
        return cast(T, function(state, *others))
    assert isinstance(state, tuple), f"a state is a tensor or a tuple of states, got {type(state).__name__}"
    parts = [map_state(function, *children) for children in zip(state, *cast("tuple[Any, ...]", others), strict=True)]
    return cast(T, type(state)(*parts) if hasattr(state, "_fields") else tuple(parts))


def state_leaves(state: StateTree) -> list[Tensor]:
    """The tensors of ``state``, in the order in which ``pack_state`` lays them out."""
    if isinstance(state, Tensor):
        return [state]
    return [leaf for child in state for leaf in state_leaves(child)]


def select_state(state: T, rows: Tensor | slice | Sequence[int]) -> T:
    """The given batch rows: a slice, indices or a boolean mask (B,)."""
    index = rows if isinstance(rows, Tensor | slice) else torch.as_tensor(rows)
    # Indexing by a slice gives views, by a tensor copies; cloning keeps every result independent of its source.
    return map_state(lambda leaf: leaf[index].clone() if isinstance(index, slice) else leaf[index], state)


def where_state(mask: Tensor, state: T, other: T) -> T:
    """Row by row: ``state`` where the boolean ``mask`` (B,) is true, else ``other``.

    Raises:
        ValueError: the mask is not (B,).
        TypeError: it is not boolean.
    """
    batch_size = state_leaves(state)[0].shape[0]
    if mask.shape != (batch_size,):
        raise ValueError(f"mask must be (B,) = ({batch_size},), got {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; convert with mask.bool()")
    return map_state(lambda a, b: torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b), state, other)


def detach_state(state: T) -> T:
    """The same values, cut off from the autograd graph (truncated back-propagation through time)."""
    return map_state(Tensor.detach, state)


def move_state(state: T, device: torch.device | str) -> T:
    """The same values on another device."""
    return map_state(lambda leaf: leaf.to(device), state)


def concat_states(states: Sequence[T]) -> T:
    """One state whose batch rows are those of ``states``, in order."""
    if not states:
        raise ValueError("concat_states needs at least one state, got an empty sequence")
    return map_state(lambda *leaves: torch.cat(leaves), *states)


def pack_state(state: StateTree) -> Tensor:
    """All of a state as one (B, N) tensor, N numbers a row: for storage, and for code that carries flat arrays.

    >>> packed = pack_state(stack.initial_state(8))
    >>> state = unpack_state(packed, like=stack.initial_state(1))
    """
    return torch.cat([leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None] for leaf in state_leaves(state)], dim=1)


def unpack_state(packed: Tensor, *, like: T) -> T:
    """The inverse of ``pack_state``: a tree of the form of ``like``, whose batch size need not be that of ``packed``.

    Raises:
        ValueError: ``packed`` is not (B, N) with the N of ``like``.
    """
    sizes = [leaf.shape[1:].numel() for leaf in state_leaves(like)]
    if packed.ndim != 2 or packed.shape[1] != sum(sizes):
        raise ValueError(f"a packed state of this form is (B, {sum(sizes)}), got {tuple(packed.shape)}")
    batch_size, parts = packed.shape[0], iter(packed.split(sizes, dim=1))
    return map_state(lambda leaf: next(parts).reshape(batch_size, *leaf.shape[1:]), like)
