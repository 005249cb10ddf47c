"""Deploy a policy: load it, take its actor, and act one observation at a time with the memory passed along.

Shows that the state is a value of the caller's: who drops it between two steps has a policy without velocities.
``model.predict(observation, state, episode_start=...)`` acts alike, only slower.

python examples/act_step_by_step.py
"""

import tempfile
import time
from pathlib import Path

import gymnasium as gym
import torch

from xlstm_rl import xLSTMPPO
from xlstm_rl.actor import Actor

STEPS = 40_000


def play(actor: Actor, env: gym.Env, *, keep_state: bool) -> float:
    """The reward of one episode. This loop is all that a deployment needs."""
    observation, _ = env.reset(seed=7)
    state, total, done = None, 0.0, False
    while not done:
        action, state = actor(observation, state)  # None: a fresh memory
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
        if not keep_state:
            state = None
    return total


def main() -> None:
    torch.set_num_threads(1)  # tensors this small are slower on more
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cartpole.zip"
        xLSTMPPO("MlpPolicy", "CartPoleNoVel-v1", seed=0, device="cpu").learn(STEPS).save(file)
        actor = xLSTMPPO.load(file, device="cpu").actor()
    env = gym.make("CartPoleNoVel-v1")
    began = time.perf_counter()
    balanced = play(actor, env, keep_state=True)
    per_step = (time.perf_counter() - began) / balanced
    print(f"memory passed along:   {balanced:5.0f} of 500 steps balanced, {per_step * 1e6:.0f} us each, world included")
    print(f"memory always dropped: {play(actor, env, keep_state=False):5.0f}")


if __name__ == "__main__":
    main()
