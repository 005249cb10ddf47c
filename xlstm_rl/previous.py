"""The previous action and reward beside the observation: what a policy needs to infer how its world answers."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ACTION, REWARD = "previous_action", "previous_reward"


class PreviousInputs(gym.Wrapper[dict[str, Any], Any, Any, Any]):
    """Observations as dictionaries that hold the previous action and reward, both zero at an episode's start.

    They travel with the observation because SB3's ``predict`` is told of nothing else. Actions are one-hot where they
    are choices. For ``MultiInputPolicy``.

    Args:
        env: any environment; its observation is found under ``observation``, or stays the dictionary that it is.
        action: whether the action is added, under ``previous_action``.
        reward: whether the reward is added, under ``previous_reward``.

    Raises:
        ValueError: neither is wanted, or an action space that is no Box, Discrete, MultiDiscrete or MultiBinary.

    >>> env = make_vec_env("CartPole-v1", n_envs=8, wrapper_class=PreviousInputs)
    >>> model = xLSTMPPO("MultiInputPolicy", env)
    """

    def __init__(self, env: gym.Env[Any, Any], *, action: bool = True, reward: bool = True) -> None:
        super().__init__(env)
        if not (action or reward):
            raise ValueError("PreviousInputs needs action=True or reward=True, got neither")
        added: dict[str, spaces.Box] = {}
        if action:
            added[ACTION] = _encoded_space(env.action_space)
        if reward:
            added[REWARD] = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        inner = env.observation_space
        parts = dict(inner) if isinstance(inner, spaces.Dict) else {"observation": inner}
        self.observation_space = spaces.Dict({**parts, **added})
        self._sizes = {name: space.shape for name, space in added.items()}

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._join(observation, {name: np.zeros(shape, np.float32) for name, shape in self._sizes.items()}), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        previous = {}
        if ACTION in self._sizes:
            previous[ACTION] = _encode(action, self.env.action_space)
        if REWARD in self._sizes:
            previous[REWARD] = np.array([reward], np.float32)
        return self._join(observation, previous), reward, terminated, truncated, info

    @staticmethod
    def _join(observation: Any, previous: dict[str, np.ndarray]) -> dict[str, Any]:
        return {**(observation if isinstance(observation, dict) else {"observation": observation}), **previous}


def _encoded_space(space: spaces.Space[Any]) -> spaces.Box:
    if isinstance(space, spaces.Box):
        low, high = (np.minimum(space.low, 0).ravel(), np.maximum(space.high, 0).ravel())
        return spaces.Box(low.astype(np.float32), high.astype(np.float32))
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return spaces.Box(0, 1, (spaces.flatdim(space),), np.float32)
    raise ValueError(f"the action space must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}")


def _encode(action: Any, space: spaces.Space[Any]) -> np.ndarray:
    return np.asarray(spaces.flatten(space, action), dtype=np.float32)
