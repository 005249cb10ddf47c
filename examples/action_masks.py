"""Forbid actions that make no sense: an environment's ``action_masks`` are kept to, beside the memory.

Three keys hang in the hall, each opens its own lock once, and the lock's number is shown at the start alone. Used
keys are masked. Without masks most of the early training is spent on keys that are gone.

python examples/action_masks.py
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from xlstm_rl import xLSTMPPO

KEYS, STEPS = 4, 40_000


class Locks(gym.Env[int, int]):
    """The locks are shown one after another; then they are to be opened in that order. A used key is lost."""

    observation_space = spaces.Discrete(KEYS + 1)  # a lock, or nothing
    action_space = spaces.Discrete(KEYS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.locks, self.time = self.np_random.permutation(KEYS), 0
        self.unused = np.ones(KEYS, dtype=bool)
        return int(self.locks[0]), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        self.time += 1
        turn, reward = self.time - KEYS, 0.0
        if turn >= 0:  # before that, actions have no effect
            reward = float(action == self.locks[turn] and self.unused[action]) / KEYS
            self.unused[action] = False
        shown = int(self.locks[self.time]) if self.time < KEYS else KEYS
        return shown, reward, turn == KEYS - 1, False, {}

    def action_masks(self) -> np.ndarray:
        return self.unused


def main() -> None:
    torch.set_num_threads(1)  # tensors this small are slower on more
    for use_masking in (True, False):
        env = make_vec_env(Locks, n_envs=16, seed=0)
        options = {"learning_rate": 1e-3, "ent_coef": 0.01, "gamma": 0.0, "seed": 0, "device": "cpu"}
        model = xLSTMPPO("MlpPolicy", env, use_masking=use_masking, **options).learn(STEPS)
        print(f"masks {use_masking!s:>5}: {evaluate_policy(model, env, n_eval_episodes=100)[0]:.2f} of 1")


if __name__ == "__main__":
    main()
