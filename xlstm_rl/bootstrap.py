"""The end of an episode that ran out of time is no end: its return goes on with the critic's value.

Shapes: E environments, N floats of packed memory.
"""

from typing import Any

import numpy as np
import torch as th

from xlstm_rl.inputs import stack_observations
from xlstm_rl.mlp_policy import MlpPolicy


def bootstrap_truncated(
    policy: MlpPolicy,
    rewards: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
    state: th.Tensor,
    gamma: float,
) -> None:
    """Add the discounted value after the last observation to the ``rewards`` (E,) of episodes that ran out of time.

    That value is the one of the memory ``state`` (E, N) after the last step, which has not been reset.
    """
    rows = [row for row in np.flatnonzero(dones).tolist() if infos[row].get("TimeLimit.truncated", False)]
    if not rows:
        return
    observations = [infos[row]["terminal_observation"] for row in rows]
    with th.inference_mode():
        obs_tensor, _ = policy.obs_to_tensor(stack_observations(observations))
        values = policy.predict_values(obs_tensor, state[rows])
    rewards[rows] += gamma * values.flatten().cpu().numpy()
