"""Action masks, as sb3-contrib's MaskablePPO asks environments for them: a method ``action_masks``."""

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

METHOD = "action_masks"


def has_masks(env: VecEnv) -> bool:
    """Whether the environments say which actions they allow."""
    return env.has_attr(METHOD)


def masks_of(env: VecEnv) -> np.ndarray:
    """Which actions each of E environments allows, (E, A) bool."""
    return np.stack([np.asarray(mask, dtype=bool).ravel() for mask in env.env_method(METHOD)])
