"""Remember a picture: frames of pixels go through SB3's convolutional network into the memory.

A bar is shown upright or lying for one frame, then noise; the last frame asks which it was.

python examples/images.py
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from xlstm_rl import xLSTMPPO

SIZE, FRAMES, STEPS = 36, 6, 12_000


class Bars(gym.Env[np.ndarray, int]):
    """Frames (36, 36, 1) of bytes; only the last action counts."""

    observation_space = spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.lying, self.time = int(self.np_random.integers(2)), 0
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        done = self.time == FRAMES
        return self._frame(), float(done and action == self.lying), done, False, {}

    def _frame(self) -> np.ndarray:
        frame = self.np_random.integers(0, 80, (SIZE, SIZE, 1), dtype=np.uint8)
        if self.time == 0:
            rows, columns = (slice(16, 20), slice(6, 30)) if self.lying else (slice(6, 30), slice(16, 20))
            frame[rows, columns] = 255
        return frame


def main() -> None:
    torch.set_num_threads(1)  # tensors this small are slower on more
    env = make_vec_env(Bars, n_envs=8, seed=0)
    options = {"n_steps": 24, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 0.9, "seed": 0, "device": "cpu"}
    for algorithm, batch in ((xLSTMPPO, 96), (PPO, 96)):
        model = algorithm("CnnPolicy", env, batch_size=batch, **options).learn(STEPS)
        reward, _ = evaluate_policy(model, env, n_eval_episodes=100)
        print(f"{algorithm.__name__:>8}: {reward:.2f} right; guessing brings 0.50")


if __name__ == "__main__":
    main()
