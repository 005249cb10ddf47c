"""Environments whose velocities are hidden, so that a policy needs memory: the usual first test of one.

Importing this module registers ``CartPoleNoVel-v1``, ``MountainCarContinuousNoVel-v0`` and ``PendulumNoVel-v1``.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import register

# environment id -> positions of the velocities in its observation
VELOCITIES = {
    "CartPole-v1": (1, 3),
    "MountainCarContinuous-v0": (1,),
    "Pendulum-v1": (2,),
}


class MaskVelocity(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """Set the velocities in the observation to zero; the observation keeps its shape, the space its bounds.

    The same worlds as RL Zoo's ``MaskVelocityWrapper``, so that figures compare.

    Args:
        env: an environment made by ``gym.make``, one of ``VELOCITIES``.

    Raises:
        ValueError: an environment whose velocities are not known.

    >>> env = MaskVelocity(gym.make("CartPole-v1"))
    """

    def __init__(self, env: gym.Env[np.ndarray, Any]) -> None:
        super().__init__(env)
        name = env.unwrapped.spec.id if env.unwrapped.spec else type(env.unwrapped).__name__
        if name not in VELOCITIES:
            raise ValueError(f"the velocities of {name!r} are not known; use one of {sorted(VELOCITIES)}")
        self._velocities = list(VELOCITIES[name])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        masked = observation.copy()
        masked[self._velocities] = 0
        return masked


def _make_masked(env_id: str, **kwargs: Any) -> MaskVelocity:
    return MaskVelocity(gym.make(env_id, **kwargs))


for _id in VELOCITIES:
    register(_id.replace("-v", "NoVel-v"), entry_point="xlstm_rl.envs.velocity:_make_masked", kwargs={"env_id": _id})
