"""Tiny learnable worlds, and the models that most tests start from."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from xlstm_rl import xLSTMPPO

TINY = {"embedding_dim": 8, "num_blocks": 2, "num_heads": 2, "slstm_at": (1,)}


class RecallCue(gym.Env):
    """A cue of two is shown at the first step; the last action must name it. Without memory: right half the time."""

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)
    length = 5

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cue, self.t = int(self.np_random.integers(2)), 0
        return np.eye(3, dtype=np.float32)[self.cue], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        done = self.t == self.length
        return np.eye(3, dtype=np.float32)[2], float(done and action == self.cue), done, False, {}


class Drift(gym.Env):
    """A random walk that pays its size and ends by time limit (``length``) or by chance (``hazard``)."""

    def __init__(
        self,
        length: int = 7,
        hazard: float = 0.0,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
    ) -> None:
        self.length, self.hazard = length, hazard
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        terminated = bool(self.np_random.random() < self.hazard)
        truncated = not terminated and self.t == self.length
        return self.observation_space.sample(), 1.0, terminated, truncated, {}


@pytest.fixture
def recall_env() -> Callable[..., VecEnv]:
    return lambda n_envs=8, seed=0: make_vec_env(RecallCue, n_envs, seed=seed)


@pytest.fixture
def drift_env() -> Callable[..., VecEnv]:
    return lambda n_envs=2, seed=0, **options: make_vec_env(Drift, n_envs, seed=seed, env_kwargs=options)


@pytest.fixture
def tiny_model(drift_env: Callable[..., VecEnv]) -> Callable[..., xLSTMPPO]:
    """A model of few parameters on two random walks with many episode ends."""

    def make(env: Any = None, policy: str = "MlpPolicy", **options: Any) -> xLSTMPPO:
        policy_kwargs = {"memory": TINY, "net_arch": [8], **options.pop("policy_kwargs", {})}
        settings: dict[str, Any] = {"n_steps": 16, "n_epochs": 2, "seed": 0, "device": "cpu", **options}
        model = xLSTMPPO(policy, env or drift_env(hazard=0.1), policy_kwargs=policy_kwargs, **settings)
        nn.init.orthogonal_(model.policy.value_net.weight)  # it begins at zero, where all values would be alike
        return model

    return make
