"""Actors for deployment: snapshots of a policy that act at the least cost, with their state handed in and out.

Shapes: B batch, F features, N floats of state.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch as th

from xlstm_kernels import StackStepper
from xlstm_rl.inputs import as_flags, as_masks, batch_size_of, check_observation, stack_observations
from xlstm_rl.memory import StackMemory
from xlstm_rl.mlp_policy import MlpPolicy
from xlstm_rl.numpy_actor import NumpyActor
from xlstm_rl.portable import NotPortableError, portable_policy

Actor: TypeAlias = "NumpyActor | TorchActor"


def make_actor(policy: MlpPolicy, n_envs: int = 1) -> Actor:
    """The fastest actor for this policy where it is: compiled on a CPU, a CUDA graph on a GPU, else its own modules.

    Args:
        policy: it is copied; what it learns later does not reach the actor.
        n_envs: observations that each call will bring.

    Raises:
        ValueError: fewer than one environment.
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be >= 1, got {n_envs}")
    if policy.device.type == "cpu":
        try:
            return CompiledActor(policy)
        except NotPortableError:
            return TorchActor(policy, n_envs)
    return TorchActor(policy, n_envs)


class CompiledActor(NumpyActor):
    """NumPy around the compiled step of the memory."""

    def __init__(self, policy: MlpPolicy) -> None:
        super().__init__(*portable_policy(policy))
        memory = policy.memory.actor
        self._stack = copy.deepcopy(memory.stack) if isinstance(memory, StackMemory) else None
        if self._stack is not None:
            self._encoder = self._memory_weights["encoder.weight"].T.copy()
        self._compile()

    def _compile(self) -> None:
        self._step = None if self._stack is None else StackStepper(self._stack)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_step": None}  # it holds addresses

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compile()

    def _remember(self, features: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._step is None:
            return super()._remember(features, state)
        x = features @ self._encoder + self._memory_weights["encoder.bias"]
        y, after = self._step(th.from_numpy(x), th.from_numpy(state))
        return y.numpy(), after.numpy()


class TorchActor:
    """The policy's own modules; on a GPU captured as one CUDA graph. The state stays where the policy is."""

    def __init__(self, policy: MlpPolicy, n_envs: int) -> None:
        self._policy, self._n_envs = copy.deepcopy(policy), n_envs
        self._policy.set_training_mode(False)
        self._prepare()

    def _prepare(self) -> None:
        self._snapshot = self._policy.memory.stepping()
        self._snapshot.__enter__()  # for good: nobody else has this copy, and it learns nothing
        on_gpu = self._policy.device.type == "cuda"
        self._graph = _Graph(self._act, self._policy, self._n_envs) if on_gpu else None

    def __getstate__(self) -> dict[str, Any]:
        return {"_policy": self._policy, "_n_envs": self._n_envs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def initial_state(self, batch_size: int = 1) -> th.Tensor:
        """The memory (B, N) before the first observation."""
        return self._policy.initial_state(batch_size)

    @th.inference_mode()
    def __call__(
        self,
        observation: Any,
        state: th.Tensor | None = None,
        episode_start: Any = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, th.Tensor]:
        """Act once; see ``NumpyActor``."""
        policy = self._policy
        check_observation(observation, policy.observation_space)
        obs, batched = policy.obs_to_tensor(observation)
        B = batch_size_of(obs)
        state = policy.as_memory(None if state is None else (state,), B)
        flags = None if episode_start is None else np.broadcast_to(episode_start, (B,)).copy()
        starts = as_flags(flags, B, policy.device)
        if self._graph is not None and self._graph.n_envs == B and action_masks is None:
            actions, after = self._graph(obs, state, starts)
        else:
            masks = None if action_masks is None else as_masks(action_masks, policy.action_space, B, policy.device)
            actions, after = self._act(obs, state, starts, masks)
        chosen = policy.to_env_actions(actions.cpu().numpy())
        return chosen if batched else chosen[0], after

    def _act(
        self, obs: Any, state: th.Tensor, starts: th.Tensor | None, masks: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        return self._policy.act(obs, state, starts, deterministic=True, action_masks=masks)


class _Graph:
    """One captured call for ``n_envs`` observations, replayed on copies of what it is given."""

    def __init__(self, act: Callable[..., tuple[th.Tensor, th.Tensor]], policy: MlpPolicy, n_envs: int) -> None:
        self.n_envs = n_envs
        observations = stack_observations([policy.observation_space.sample() for _ in range(n_envs)])
        with th.inference_mode():
            self._obs, _ = policy.obs_to_tensor(observations)
            self._state = policy.initial_state(n_envs)
            self._starts = th.zeros(n_envs, dtype=th.bool, device=policy.device)
            side = th.cuda.Stream()
            side.wait_stream(th.cuda.current_stream())
            with th.cuda.stream(side):
                for _ in range(3):  # what kernels allocate or compile at their first call is no part of the graph
                    act(self._obs, self._state, self._starts)
            th.cuda.current_stream().wait_stream(side)
            self._graph = th.cuda.CUDAGraph()
            with th.cuda.graph(self._graph):
                self._actions, self._after = act(self._obs, self._state, self._starts)

    def __call__(self, obs: Any, state: th.Tensor, starts: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
        if isinstance(self._obs, dict):
            for key, mine in self._obs.items():
                mine.copy_(obs[key])
        else:
            self._obs.copy_(obs)
        self._state.copy_(state)
        if starts is None:
            self._starts.zero_()
        else:
            self._starts.copy_(starts)
        self._graph.replay()
        return self._actions, self._after.clone()
