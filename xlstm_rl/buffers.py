"""Rollout buffers that hand out whole sequences, with the memory's state stored at sequence starts only.

Shapes: T steps of the rollout, E environments, B sequences of S steps in a minibatch, N floats of packed memory.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples

from xlstm_rl.sequences import SequencePlan, Sequences, plan_sequences


class SequenceRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer, whose minibatches are sequences: chunks of ``seq_len`` steps of one environment.

    The arguments are those of ``RolloutBuffer``, and ``seq_len``, a divisor of ``buffer_size`` (None for whole rows).
    While a rollout is collected, ``add_state`` is called before the first step of each chunk.
    """

    def __init__(self, *args: Any, seq_len: int | None = None, **kwargs: Any) -> None:
        self.states: list[np.ndarray] = []  # one (E, N) array for each chunk of the row
        super().__init__(*args, **kwargs)
        self.seq_len = self.buffer_size if seq_len is None else seq_len

    def reset(self) -> None:
        self.states = []
        super().reset()

    def add_state(self, packed: th.Tensor) -> None:
        """Store the memory (E, N) as it is before the next step is read (and before that step's reset)."""
        self.states.append(packed.cpu().numpy())

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Yield every sequence once, in random order, in minibatches of ``batch_size`` steps.

        ``observations`` of a minibatch is a ``Sequences``; everything else is flat (B * S, ...), as SB3 has it.
        """
        plan = self.plan(batch_size)
        order = np.random.permutation(plan.total)
        for first in range(0, plan.total, plan.per_batch):
            yield self.sequences(order[first : first + plan.per_batch])

    def plan(self, batch_size: int | None) -> SequencePlan:
        """How this rollout divides into minibatches of ``batch_size`` steps."""
        return plan_sequences(self.buffer_size, self.n_envs, seq_len=self.seq_len, batch_size=batch_size)

    def sequences(self, indices: np.ndarray) -> RolloutBufferSamples:
        """The sequences of the given ``indices`` (B,), counted through a whole row, then the next environment's."""
        assert self.full, "the rollout must be complete before its sequences are read"
        envs, chunks = np.divmod(indices, self.buffer_size // self.seq_len)
        where = chunks[:, None] * self.seq_len + np.arange(self.seq_len), envs[:, None]  # (B, S), (B, 1)
        arrays = (self.actions, self.values, self.log_probs, self.advantages, self.returns)
        actions, values, log_probs, advantages, returns = (self._flat(array[where]) for array in arrays)
        states = np.stack([self.states[chunk][env] for chunk, env in zip(chunks, envs, strict=True)])
        return RolloutBufferSamples(
            observations=Sequences(  # type: ignore[arg-type]
                observations=self._flat_observations(where),
                episode_starts=self.to_torch(self.episode_starts[where] > 0, copy=False),
                states=self.to_torch(states, copy=False),
            ),
            # as SB3 does: the distributions take float32, MultiBinary actions are int8
            actions=actions.float(),
            old_values=values,
            old_log_prob=log_probs,
            advantages=advantages,
            returns=returns,
        )

    def all_observations(self) -> PyTorchObs:
        """The rollout's observations, flat (T * E, ...)."""
        return self._flat_observations((slice(None), slice(None)))

    def _flat_observations(self, where: tuple[Any, Any]) -> PyTorchObs:
        if isinstance(self.observations, dict):
            return {key: self._flat(array[where]) for key, array in self.observations.items()}
        return self._flat(self.observations[where])

    def _flat(self, array: np.ndarray) -> th.Tensor:
        """(B, S, ...) to a tensor (B * S, ...); fancy indexing has copied already."""
        return self.to_torch(array.reshape(-1, *array.shape[2:]), copy=False)


class DictSequenceRolloutBuffer(SequenceRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """The same for dictionaries of observations."""
