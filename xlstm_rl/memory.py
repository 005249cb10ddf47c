"""The memory of a policy: cells that read features, one step or a whole sequence at a time, behind one protocol.

Shapes: B batch, S sequence, F features, D memory output, L layers, N floats of packed state.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from xlstm_kernels import StackStepper, pack_state, unpack_state, xLSTMBlockStack
from xlstm_rl.config import MemoryConfig


class Memory(nn.Module, ABC):
    """Features (B, S, F) to a latent (B, S, D), with a state that travels as one tensor (B, N), rows independent."""

    output_dim: int

    @abstractmethod
    def forward(self, features: Tensor, state: Tensor, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read on from ``state``; where ``resets`` (B, S) is true, forget all before that step.

        Returns:
            The latent (B, S, D) and the state (B, N) after the last step.
        """

    @abstractmethod
    def initial_state(self, batch_size: int) -> Tensor:
        """The memory (B, N) of ``batch_size`` rows that have read nothing."""

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Within it, single steps without gradients may read a snapshot of the weights, where that is faster."""
        yield


class StackMemory(Memory):
    """A linear encoder and a stack of xLSTM blocks.

    >>> memory = StackMemory(4, MemoryConfig.from_options({}))
    >>> latent, state = memory(features, memory.initial_state(8))
    """

    def __init__(self, features_dim: int, config: MemoryConfig) -> None:
        super().__init__()
        assert config.stack is not None
        self.output_dim = config.embedding_dim
        self.encoder = nn.Linear(features_dim, self.output_dim)
        self.stack = xLSTMBlockStack(config.stack)
        nn.init.constant_(self.stack.norm.weight, config.scale)
        self._form = self.stack.initial_state(1)  # tells unpack the shapes
        self._stepper: StackStepper | None = None
        self._is_stepping = False

    def forward(self, features: Tensor, state: Tensor, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.encoder(features)
        is_step = x.shape[1] == 1 and not th.is_grad_enabled() and not th.compiler.is_compiling()
        step = self._snapshot() if is_step else None
        if step is not None:
            y, state = step(x[:, 0], state, None if resets is None else resets[:, 0])
            return y[:, None], state
        y, after = self.stack(x, unpack_state(state, like=self._form), resets=resets)
        return y, pack_state(after)

    def _snapshot(self) -> StackStepper | None:
        """Reads the weights as they are now, or within ``stepping`` as they were; None where the stack itself must."""
        if self._is_stepping:
            return self._stepper
        if self._stepper is None or not self._stepper.follows(self.stack):
            self._stepper = StackStepper(self.stack) if StackStepper.compiles(self.stack) else None
        return self._stepper

    def initial_state(self, batch_size: int) -> Tensor:
        return pack_state(self.stack.initial_state(batch_size))

    def __getstate__(self) -> dict[str, Any]:
        # A snapshot is its owner's: it can be neither copied nor pickled
        return {**self.__dict__, "_stepper": None, "_is_stepping": False}

    @contextmanager
    def stepping(self) -> Iterator[None]:
        self._stepper, self._is_stepping = StackStepper(self.stack), True
        try:
            yield
        finally:
            self._is_stepping = False


class TorchMemory(Memory):
    """``torch.nn.LSTM`` or ``GRU`` on the features themselves, as sb3-contrib has it; a reset begins a new sequence."""

    def __init__(self, features_dim: int, config: MemoryConfig) -> None:
        super().__init__()
        self.output_dim = config.embedding_dim
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[config.cell]
        self.rnn = kind(features_dim, config.embedding_dim, config.num_blocks, batch_first=True)
        self._leaves = 2 if config.cell == "lstm" else 1  # h and c, or h

    def forward(self, features: Tensor, state: Tensor, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if resets is None:
            latent, after = self.rnn(features, self._unpack(state))
            return latent, self._pack(after)
        if features.shape[1] == 1:
            return self.forward(features, state.masked_fill(resets, 0.0))
        return self._read_episodes(features, state, resets)

    def _read_episodes(self, features: Tensor, state: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's pieces between resets as sequences of their own, all in one call.

        Their number and lengths are known to the host alone: on a GPU this waits for it.
        """
        begins = resets.clone()
        begins[:, 0] = True
        rows, steps = begins.nonzero(as_tuple=True)  # in the order of flat features
        S = features.shape[1]
        ends = th.cat([rows[1:] * S + steps[1:], rows.new_tensor([features.shape[0] * S])])
        pieces = features.flatten(0, 1).split((ends - (rows * S + steps)).tolist())
        given = th.where(resets[rows, steps, None], 0.0, state[rows])
        latent, after = self.rnn(pack_sequence(pieces, enforce_sorted=False), self._unpack(given))
        last = th.cat([rows[1:] != rows[:-1], rows.new_ones(1, dtype=th.bool)])  # of each row
        return th.cat(unpack_sequence(latent)).unflatten(0, (-1, S)), self._pack(after)[last]

    def initial_state(self, batch_size: int) -> Tensor:
        size = self._leaves * self.rnn.num_layers * self.output_dim
        return self.rnn.weight_ih_l0.new_zeros(batch_size, size)

    def _unpack(self, state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, N) to h or (h, c), each (L, B, D)."""
        leaves = state.view(len(state), self._leaves, self.rnn.num_layers, self.output_dim).permute(1, 2, 0, 3)
        parts = tuple(leaf.contiguous() for leaf in leaves)
        return parts if self._leaves == 2 else parts[0]

    def _pack(self, parts: Tensor | tuple[Tensor, ...]) -> Tensor:
        leaves = parts if isinstance(parts, tuple) else (parts,)
        return th.cat([leaf.transpose(0, 1).flatten(1) for leaf in leaves], dim=1)


def build_memory(features_dim: int, config: MemoryConfig) -> Memory:
    """The memory that the config describes, for features of width F."""
    features_dim = int(features_dim)  # SB3 sums the sizes of a MultiDiscrete space in NumPy, which torch refuses
    return StackMemory(features_dim, config) if config.stack is not None else TorchMemory(features_dim, config)
