"""Deploy a policy: load it, and act one observation at a time with the memory passed along.

Shows that the state is a value of the caller's: who drops it between two steps has a policy without velocities.

python examples/act_step_by_step.py
"""

import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from xlstm_rl import xLSTMPPO

STEPS = 40_000


def play(model: xLSTMPPO, env: gym.Env, *, keep_state: bool) -> float:
    """The reward of one episode. This loop is all that a deployment needs."""
    observation, _ = env.reset(seed=7)
    state, start, total, done = None, np.array([True]), 0.0, False
    while not done:
        action, state = model.predict(observation, state, episode_start=start, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
        start = np.array([done or not keep_state])  # true: forget everything before the next observation
    return total


def main() -> None:
    torch.set_num_threads(1)  # tensors this small are slower on more
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cartpole.zip"
        xLSTMPPO("MlpPolicy", "CartPoleNoVel-v1", seed=0, device="cpu").learn(STEPS).save(file)
        model = xLSTMPPO.load(file, device="cpu")
    env = gym.make("CartPoleNoVel-v1")
    print(f"memory passed along:   {play(model, env, keep_state=True):5.0f} of 500 steps balanced")
    print(f"memory always dropped: {play(model, env, keep_state=False):5.0f}")


if __name__ == "__main__":
    main()
