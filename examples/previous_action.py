"""Learn to learn: a bandit whose better arm changes with every episode and must be found out by trying.

The observation says nothing at all. What the last arm was and what it paid reaches the memory through
``PreviousInputs``; one policy then explores first and exploits later, within each episode.

python examples/previous_action.py
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from xlstm_rl import PreviousInputs, xLSTMPPO

PULLS, STEPS = 20, 40_000


class Bandit(gym.Env[np.ndarray, int]):
    """Two arms, one pays nine times in ten and the other once; which is which is drawn at each reset."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.better, self.pulls = int(self.np_random.integers(2)), 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.pulls += 1
        pays = self.np_random.random() < (0.9 if action == self.better else 0.1)
        return np.zeros(1, np.float32), float(pays) / PULLS, self.pulls == PULLS, False, {}


def main() -> None:
    torch.set_num_threads(1)  # tensors this small are slower on more
    for wrapper, policy in ((PreviousInputs, "MultiInputPolicy"), (None, "MlpPolicy")):
        env = make_vec_env(Bandit, n_envs=16, seed=0, wrapper_class=wrapper)
        model = xLSTMPPO(policy, env, learning_rate=1e-3, ent_coef=0.01, seed=0, device="cpu").learn(STEPS)
        reward, _ = evaluate_policy(model, env, n_eval_episodes=200)
        inputs = "previous action and reward" if wrapper else "the observation alone"
        print(f"{inputs:<27}: {reward:.2f} a pull; always the better arm brings 0.90, guessing 0.50")


if __name__ == "__main__":
    main()
