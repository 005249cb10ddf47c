"""The memory of a policy: an xLSTM stack that reads features, one step or a whole sequence at a time.

Shapes: B batch, S sequence, F features, D embedding dim, N floats of a packed state.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch as th
from torch import nn

from xlstm_kernels import pack_state, unpack_state, xLSTMBlockStack, xLSTMConfig

MemoryState: TypeAlias = Any  # a tree of tensors, batch first; only the backbone's own functions look inside

# One mLSTM block: it masters CartPole without velocities in 40,000 steps; a second block costs half the speed.
_DEFAULTS: dict[str, Any] = {"embedding_dim": 64, "num_blocks": 1}


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """What ``policy_kwargs=dict(memory=dict(...))`` says.

    Args:
        stack: the xLSTM stack.
        skip: whether actor and critic see the features beside the memory's output.
    """

    stack: xLSTMConfig
    skip: bool = True

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "MemoryConfig":
        """Read a flat dictionary: ``cell``, ``skip`` and any field of ``xLSTMConfig``.

        Raises:
            ValueError: an unknown option or cell, dropout, or sizes that the stack refuses.

        >>> MemoryConfig.from_options({"embedding_dim": 32, "num_heads": 2, "slstm_at": ()})
        """
        fields = {field.name for field in dataclasses.fields(xLSTMConfig)}
        known = fields | {"cell", "skip"}
        if unknown := sorted(set(options) - known):
            raise ValueError(f"unknown memory option {unknown[0]!r}; use one of {sorted(known)}")
        if (cell := options.get("cell", "xlstm")) != "xlstm":
            raise ValueError(f"unknown memory cell {cell!r}; use 'xlstm'")
        if dropout := options.get("dropout", 0):
            raise ValueError(f"memory dropout must be 0, got {dropout}: rollout and update would disagree")
        stack = {**_DEFAULTS, **{name: value for name, value in options.items() if name in fields}}
        return cls(stack=xLSTMConfig(**stack), skip=bool(options.get("skip", True)))


class Memory(nn.Module):
    """Features (B, S, F) through a linear encoder and an xLSTM stack to a latent (B, S, D).

    Args:
        features_dim: F, the width of the features.
        config: the stack.

    >>> memory = Memory(4, MemoryConfig.from_options({}))
    >>> latent, state = memory(features, memory.initial_state(8))
    """

    def __init__(self, features_dim: int, config: MemoryConfig) -> None:
        super().__init__()
        self.output_dim = config.stack.embedding_dim
        self.encoder = nn.Linear(features_dim, self.output_dim)
        self.stack = xLSTMBlockStack(config.stack)
        self._form = self.stack.initial_state(1)  # tells unpack the shapes

    def forward(
        self, features: th.Tensor, state: MemoryState, resets: th.Tensor | None = None
    ) -> tuple[th.Tensor, MemoryState]:
        """Read ``features`` (B, S, F) on from ``state``; where ``resets`` (B, S) is true, forget all before that step.

        Returns:
            The latent (B, S, D) and the state after the last step.
        """
        return self.stack(self.encoder(features), state, resets=resets)

    def initial_state(self, batch_size: int) -> MemoryState:
        """The memory of ``batch_size`` rows that have read nothing."""
        return self.stack.initial_state(batch_size)

    def unpack(self, packed: th.Tensor) -> MemoryState:
        """The inverse of ``pack_state`` for this memory's states: (B, N) to a tree."""
        return unpack_state(packed, like=self._form)

    def to_numpy(self, state: MemoryState) -> tuple[np.ndarray, ...]:
        """A state as SB3's ``predict`` hands it out: a tuple of one float32 array (B, N)."""
        return (pack_state(state).detach().cpu().numpy(),)

    def from_numpy(self, arrays: tuple[np.ndarray, ...] | None, batch_size: int) -> MemoryState:
        """The inverse of ``to_numpy``; None gives a fresh memory.

        Raises:
            ValueError: a state of another batch size or of another memory.
        """
        if arrays is None:
            return self.initial_state(batch_size)
        packed = th.as_tensor(arrays[0], dtype=th.float32, device=self.encoder.weight.device)
        if packed.ndim != 2 or packed.shape[0] != batch_size:
            raise ValueError(
                f"state has shape {tuple(packed.shape)} but there are {batch_size} observations; pass the state that "
                "predict returned for these environments, or None to start with a fresh memory"
            )
        return self.unpack(packed)
