"""Forbid what cannot be done: an environment's ``action_masks`` are kept to, beside the memory.

In the T-maze most moves run into a wall. With those masked the agent is at the junction at once, and all that is left
to learn is to remember the sign of the start.

python examples/action_masks.py
"""

import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env

from xlstm_rl import TMaze, xLSTMPPO

STEPS = 16_384


class MaskedMaze(TMaze):
    """Forward, back, left and right are allowed where no wall is in the way; sb3-contrib's protocol."""

    def action_masks(self) -> np.ndarray:
        at_junction = self.place == self.length
        return np.array([not at_junction, self.place > 0, at_junction, at_junction])


def main() -> None:
    torch.set_num_threads(1)  # tensors this small are slower on more
    for use_masking in (True, False):
        env = make_vec_env(MaskedMaze, n_envs=16, seed=0, env_kwargs={"length": 20})
        options = {"learning_rate": 1e-3, "ent_coef": 0.01, "seed": 0, "device": "cpu"}
        model = xLSTMPPO("MlpPolicy", env, n_steps=64, use_masking=use_masking, **options).learn(STEPS)
        rewards = [episode["r"] for episode in model.ep_info_buffer]
        print(f"masks {use_masking!s:>5}: mean reward of the last {len(rewards)} episodes {np.mean(rewards):5.2f} of 1")


if __name__ == "__main__":
    main()
