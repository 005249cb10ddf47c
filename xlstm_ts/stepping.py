"""A stack whose state travels as one tensor: whole sequences as they are, single steps at the least cost.

Shapes: B batch, S tokens, D embedding dim, N numbers of a state.
"""

from typing import Any

import torch
from torch import Tensor

from xlstm_kernels import StackStepper, pack_state, unpack_state, xLSTMBlockStack


class SteppingStack:
    """Reads tokens with a stack that others train; a single token is one compiled call, where the stack compiles.

    Args:
        stack: whose weights are read as they are at each call.
    """

    def __init__(self, stack: xLSTMBlockStack) -> None:
        self._stack = stack
        self._form = stack.initial_state(1)  # tells unpack the shapes
        self._stepper: StackStepper | None = None

    def initial_state(self, batch_size: int) -> Tensor:
        """The state (B, N) before any token."""
        return pack_state(self._stack.initial_state(batch_size))

    def __call__(self, inputs: Tensor, state: Tensor, afresh: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, S, D) and the state (B, N) after them, from inputs (B, S, D) and bool ``afresh`` (B, S)."""
        step = self._current_stepper() if inputs.shape[1] == 1 and not torch.is_grad_enabled() else None
        if step is not None:
            outputs, state = step(inputs[:, 0], state, afresh[:, 0])
            return outputs[:, None], state
        outputs, after = self._stack(inputs, unpack_state(state, like=self._form), afresh)
        return outputs, pack_state(after)

    def _current_stepper(self) -> StackStepper | None:
        """A snapshot of the weights as they are; None where the stack itself must step."""
        if self._stepper is None or not self._stepper.follows(self._stack):
            self._stepper = StackStepper(self._stack) if StackStepper.compiles(self._stack) else None
        return self._stepper

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stepper": None}  # a snapshot holds addresses: it cannot be pickled
