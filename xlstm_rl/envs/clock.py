"""A clock beside the observation, so that a memory can address what it stores by when it was seen.

Shapes: F features of the flattened observation, P periods.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

PERIODS = (4, 8, 16, 32, 64, 128, 256, 512)


class EpisodeClock(gym.Wrapper[np.ndarray, Any, Any, Any]):
    """Flatten the observation and append sine and cosine of the steps since the episode began, one pair a period.

    "What did I see 31 steps ago?" is then a rotation of the present time, "what was shown as long before the middle as
    now is after it?" a reflection: linear maps, which an mLSTM's queries learn.

    Args:
        env: an environment whose observations can be flattened.
        periods: steps of each cycle; together they tell apart as many steps as the longest of them.

    Raises:
        ValueError: a period shorter than two steps.

    >>> env = EpisodeClock(gym.make("TMaze50-v0"))
    """

    def __init__(self, env: gym.Env[Any, Any], periods: tuple[float, ...] = PERIODS) -> None:
        super().__init__(env)
        if min(periods, default=0) < 2:
            raise ValueError(f"periods must be two steps or more, got {periods}")
        self._frequencies = 2 * np.pi / np.asarray(periods)
        flat = spaces.flatten_space(env.observation_space)
        assert isinstance(flat, spaces.Box)
        clock = np.ones(2 * len(periods))
        self.observation_space = spaces.Box(
            np.concatenate([flat.low, -clock], dtype=np.float32), np.concatenate([flat.high, clock], dtype=np.float32)
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._steps = 0
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_clock(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        self._steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_clock(observation), reward, terminated, truncated, info

    def _with_clock(self, observation: Any) -> np.ndarray:
        angles = self._steps * self._frequencies
        flat = np.asarray(spaces.flatten(self.env.observation_space, observation))  # (F,)
        return np.concatenate([flat, np.sin(angles), np.cos(angles)], dtype=np.float32)  # (F + 2 P,)
