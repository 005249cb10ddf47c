"""Stepping a stack without gradients at the least cost: a snapshot of its weights, the state in one flat array.

Shapes: B batch, D embedding dim, N numbers of state a row.
"""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from .compiled_step import CompiledStep, compiles
from .graph_step import GraphStep
from .ops.checks import check_tensor
from .seen_weights import SeenWeights
from .stack import xLSTMBlockStack
from .state import pack_state, unpack_state


class StackStepper:
    """A snapshot of a stack that steps without gradients: where the C core runs, in one call for all blocks; on a CUDA
    device, in one replay of a graph, which is captured at the first call with a batch size.

    The weights are copied: build a new stepper after the stack has learnt. The state is that of the stack, packed:
    ``unpack_state`` and ``pack_state`` lead from one to the other.

    Args:
        stack: an ``xLSTMBlockStack``, on any device and of any kind. Those of the paper's blocks in float32 on a CPU,
            whose widths are multiples of 16, run compiled.

    >>> step = StackStepper(stack)
    >>> state = step.initial_state(8)        # (8, N)
    >>> y, state = step(x, state)            # x, y (8, D)
    """

    def __init__(self, stack: xLSTMBlockStack) -> None:
        self._empty = pack_state(stack.initial_state(1)).detach()
        self._width = stack.config.embedding_dim
        self._step: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
        self._step = CompiledStep(stack) if compiles(stack) else _NativeStep(stack)
        self._seen = SeenWeights(stack) if self.is_compiled else None
        if self._empty.is_cuda:
            self._step = GraphStep(self._step)

    @staticmethod
    def compiles(stack: xLSTMBlockStack) -> bool:
        """Whether a stepper of this stack would be compiled; cheaper to ask than to make one."""
        return compiles(stack)

    @property
    def is_compiled(self) -> bool:
        """Whether a step is one call into the C core."""
        return isinstance(self._step, CompiledStep)

    def follows(self, stack: xLSTMBlockStack) -> bool:
        """Whether the stack's weights are still those of the snapshot, bit by bit; always false where none is compiled.

        It takes about as long as a step does, so that code which cannot know may ask before each.
        """
        return self._seen is not None and self._seen.are_those_of(stack)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a snapshot does not change

    def __getstate__(self) -> dict[str, Any]:
        if self.is_compiled:
            raise TypeError(
                "a compiled StackStepper holds addresses: pickle its stack, and build another where it is read"
            )
        return self.__dict__

    def initial_state(self, batch_size: int) -> Tensor:
        """The state before any input, packed: (B, N)."""
        return self._empty.expand(batch_size, -1).clone()

    def __call__(self, x: Tensor, state: Tensor, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read one step of each row.

        Args:
            x: inputs (B, D).
            state: what ``initial_state`` or the last call gave, (B, N); it is not changed.
            resets: bool (B,); where true, the row forgets everything before it reads this step.

        Returns:
            Outputs (B, D), and the state after them (B, N).

        Raises:
            ValueError: a shape or the device does not fit.
            TypeError: ``x`` or ``state`` is no tensor, or ``resets`` is not boolean.
        """
        check_tensor("x", x)
        check_tensor("state", state)
        batch_size = len(x)
        if x.device != self._empty.device:
            raise ValueError(f"x must be on {self._empty.device} like the stepper, got {x.device}")
        if x.shape != (batch_size, self._width):
            raise ValueError(f"x must be (B, embedding_dim = {self._width}), got {tuple(x.shape)}")
        if state.shape != (batch_size, self._empty.shape[1]):
            raise ValueError(f"state must be {(batch_size, self._empty.shape[1])}, got {tuple(state.shape)}")
        if resets is not None:
            if resets.shape != (batch_size,):
                raise ValueError(f"resets must be (B,) = {(batch_size,)}, got {tuple(resets.shape)}")
            if resets.dtype != torch.bool:
                raise TypeError(f"resets must be bool, got {resets.dtype}; convert with resets.bool()")
        return self._step(x, state, resets)


class _NativeStep:
    """The stack's own step, between unpacking and packing."""

    def __init__(self, stack: xLSTMBlockStack) -> None:
        self.stack = copy.deepcopy(stack).eval()
        self.form = stack.initial_state(1)

    @torch.no_grad()
    def __call__(self, x: Tensor, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        given = unpack_state(state, like=self.form)
        y, after = self.stack(x[:, None], given, None if resets is None else resets[:, None])
        return y[:, 0], pack_state(after)
