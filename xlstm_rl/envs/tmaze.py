"""The T-maze: a sign at the start of a corridor says where to turn at its end (Bakker 2001).

Importing this module registers ``TMaze50-v0`` and ``TMaze200-v0``.
"""

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import register

SIGN_LEFT, SIGN_RIGHT, CORRIDOR, JUNCTION = range(4)
FORWARD, BACK, LEFT, RIGHT = range(4)


class TMaze(gym.Env[Any, Any]):
    """Walk down a corridor and turn to the side that the sign at its start named.

    Observations are ``Discrete(4)``: a sign to the left, a sign to the right, the corridor, the junction. Actions are
    ``Discrete(4)``: forward, back, left, right; one that a wall blocks leaves the agent where it is.
    The right turn pays 1, the wrong one nothing, and both end the episode. Every step that does not lead forward costs
    ``1 / length`` (as in Ni et al. 2023), so that walking is learnt at once and memory alone is what is hard:
    the best return is 1, without memory 0.5. The episode is truncated after ``2 * length + 2`` steps.

    Args:
        length: steps from the sign to the junction, so many observations lie between the two.

    Raises:
        ValueError: ``length`` is not positive.

    >>> env = gym.make("TMaze50-v0")
    """

    def __init__(self, length: int) -> None:
        if length < 1:
            raise ValueError(f"length must be >= 1, got {length}")
        self.length = length
        self.observation_space = spaces.Discrete(4)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.sign = int(self.np_random.integers(2))
        self.place, self.steps = 0, 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        truncated = self.steps == 2 * self.length + 2
        at_junction = self.place == self.length
        if at_junction and action in (LEFT, RIGHT):
            is_right = action == (LEFT, RIGHT)[self.sign]
            return self._observation(), float(is_right), True, False, {}
        advances = action == FORWARD and not at_junction
        if advances:
            self.place += 1
        elif action == BACK:
            self.place = max(self.place - 1, 0)
        return self._observation(), 0.0 if advances else -1 / self.length, False, truncated, {}

    def _observation(self) -> int:
        if self.place == 0:
            return (SIGN_LEFT, SIGN_RIGHT)[self.sign]
        return JUNCTION if self.place == self.length else CORRIDOR


for _length in (50, 200):
    register(f"TMaze{_length}-v0", entry_point="xlstm_rl.envs.tmaze:TMaze", kwargs={"length": _length})
