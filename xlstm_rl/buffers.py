"""Rollout buffers that hand out whole sequences, with the memory's state stored where sequences begin.

Shapes: T steps of the rollout, E environments, B sequences of S steps in a minibatch, N floats of packed memory, A
flags of an action mask.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples

from xlstm_rl.sequences import BurnIn, SequencePlan, Sequences, plan_sequences


class _Rollout(NamedTuple):
    """All sequences of a rollout by their indices, each (E * chunks, S, ...), and ``states`` (E * chunks, N)."""

    observations: PyTorchObs
    episode_starts: th.Tensor
    states: th.Tensor
    action_masks: th.Tensor | None
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


class SequenceRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer, whose minibatches are sequences: chunks of ``seq_len`` steps of one environment.

    The arguments are those of ``RolloutBuffer``, and these. While a rollout is collected, ``add_state`` is called
    before the steps where ``wants_state`` says so.

    Args:
        seq_len: a divisor of ``buffer_size``; None for whole rows.
        burn_in: steps, at most ``seq_len``, that each chunk but a row's first reads before it begins.
        mask_size: A; 0 for no masks.
    """

    def __init__(
        self, *args: Any, seq_len: int | None = None, burn_in: int = 0, mask_size: int = 0, **kwargs: Any
    ) -> None:
        self.states: dict[int, np.ndarray] = {}  # step -> (E, N), the memory before it is read
        self.mask_size, self.action_masks = mask_size, np.empty(0, dtype=bool)  # (T, E, A)
        super().__init__(*args, **kwargs)
        self.seq_len = self.buffer_size if seq_len is None else seq_len
        self.burn_in = burn_in
        self._first_reads = {self._first_read(chunk) for chunk in range(self.buffer_size // self.seq_len)}

    def reset(self) -> None:
        self.states = {}
        self.action_masks = np.ones((self.buffer_size, self.n_envs, self.mask_size), dtype=bool)
        super().reset()

    def wants_state(self) -> bool:
        """Whether a sequence is read from the next step on."""
        return self.pos in self._first_reads

    def add_state(self, state: th.Tensor) -> None:
        """Store the memory (E, N) as it is before the next step is read (and before that step's reset)."""
        self.states[self.pos] = state.cpu().numpy()

    def add_masks(self, action_masks: np.ndarray) -> None:
        """Store which actions (E, A) the next step allows."""
        self.action_masks[self.pos] = action_masks

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Yield every sequence once, in random order, in minibatches of ``batch_size`` steps.

        ``observations`` of a minibatch is a ``Sequences``; everything else is flat (B * S, ...), as SB3 has it.
        """
        plan, rollout = self.plan(batch_size), self._rollout()
        order = np.random.permutation(plan.total)
        for first in range(0, plan.total, plan.per_batch):
            yield self._minibatch(rollout, order[first : first + plan.per_batch])

    def plan(self, batch_size: int | None) -> SequencePlan:
        """How this rollout divides into minibatches of ``batch_size`` steps."""
        if batch_size is None:
            return plan_sequences(self.buffer_size, self.n_envs, seq_len=self.seq_len, batch_size=None)
        total = self.n_envs * self.buffer_size // self.seq_len
        return SequencePlan(self.seq_len, max(batch_size // self.seq_len, 1), total)

    def sequences(self, indices: np.ndarray) -> RolloutBufferSamples:
        """The sequences of the given ``indices`` (B,), counted through a whole row, then the next environment's."""
        return self._minibatch(self._rollout(), indices)

    def _rollout(self) -> _Rollout:
        """All sequences, arranged once for all minibatches: picking some of them is then a copy, of one a view."""
        assert self.full, "the rollout must be complete before its sequences are read"
        chunks = range(self.buffer_size // self.seq_len)
        states = np.stack([self.states[self._first_read(chunk)] for chunk in chunks], axis=1)  # (E, chunks, N)
        observations = self.observations
        return _Rollout(
            observations={key: self._cut(array) for key, array in observations.items()}
            if isinstance(observations, dict)
            else self._cut(observations),
            episode_starts=self._cut(self.episode_starts > 0),
            states=self.to_torch(states.reshape(-1, states.shape[2]), copy=False),
            action_masks=self._cut(self.action_masks) if self.mask_size else None,
            actions=self._cut(self.actions).float(),  # as SB3 does: distributions take it, MultiBinary's are int8
            old_values=self._cut(self.values),
            old_log_prob=self._cut(self.log_probs),
            advantages=self._cut(self.advantages),
            returns=self._cut(self.returns),
        )

    def _minibatch(self, rollout: _Rollout, indices: np.ndarray) -> RolloutBufferSamples:
        # One sequence is a slice: nothing is copied
        one = len(indices) == 1
        picked = slice(indices[0], indices[0] + 1) if one else self.to_torch(indices, copy=False)

        def flat(sequences: th.Tensor) -> th.Tensor:
            return sequences[picked].flatten(0, 1)

        observations, masks = rollout.observations, rollout.action_masks
        envs, chunks = np.divmod(indices, self.buffer_size // self.seq_len)
        return RolloutBufferSamples(
            observations=Sequences(  # type: ignore[arg-type]
                observations={key: flat(array) for key, array in observations.items()}
                if isinstance(observations, dict)
                else flat(observations),
                episode_starts=rollout.episode_starts[picked],
                states=rollout.states[picked],
                action_masks=None if masks is None else flat(masks),
                burn_in=self._burn_in(envs, chunks) if self.burn_in and chunks.any() else None,
            ),
            actions=flat(rollout.actions),
            old_values=flat(rollout.old_values),
            old_log_prob=flat(rollout.old_log_prob),
            advantages=flat(rollout.advantages),
            returns=flat(rollout.returns),
        )

    def rows(self, start: int, stop: int) -> Sequences:
        """All environments from one step to another, without their states."""
        where = np.arange(start, stop)[None], np.arange(self.n_envs)[:, None]
        return Sequences(self.flat_observations(where), self._starts(where), th.empty(0))

    def flat_observations(self, where: tuple[Any, Any]) -> PyTorchObs:
        """The observations at these steps and environments, flat."""
        if isinstance(self.observations, dict):
            return {key: self._flat(array[where]) for key, array in self.observations.items()}
        return self._flat(self.observations[where])

    def _first_read(self, chunk: int) -> int:
        return max(int(chunk) * self.seq_len - self.burn_in, 0)

    def _burn_in(self, envs: np.ndarray, chunks: np.ndarray) -> BurnIn:
        """A row's first chunk has nothing in front of it: what the last rollout saw is gone."""
        (rows,) = np.nonzero(chunks)
        first = chunks[rows, None] * self.seq_len - self.burn_in
        where = first + np.arange(self.burn_in), envs[rows, None]
        return BurnIn(self.to_torch(rows, copy=False), self.flat_observations(where), self._starts(where))

    def _cut(self, array: np.ndarray) -> th.Tensor:
        """(T, E, ...) to sequences (E * chunks, S, ...)."""
        return self.to_torch(array.swapaxes(0, 1).reshape(-1, self.seq_len, *array.shape[2:]), copy=False)

    def _starts(self, where: tuple[Any, Any]) -> th.Tensor:
        return self.to_torch(self.episode_starts[where] > 0, copy=False)

    def _flat(self, array: np.ndarray) -> th.Tensor:
        """(B, S, ...) to a tensor (B * S, ...); fancy indexing has copied already."""
        return self.to_torch(array.reshape(-1, *array.shape[2:]), copy=False)


class DictSequenceRolloutBuffer(SequenceRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """The same for dictionaries of observations."""
