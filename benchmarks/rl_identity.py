"""How many seeds learn SB3's identity worlds, whose answer is the observation, as fast as its own tests want it.

python benchmarks/rl_identity.py --seeds 40

The settings are those of tests/test_identity.py in DLR-RM/stable-baselines3: about 1,200 steps, after which 90 of 100
actions must be right. That test has one seed; here are many, for PPO and for policies with memory.
"""

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy

from xlstm_rl import xLSTMPPO

WORLDS: dict[str, Callable[[], gym.Env]] = {
    "Discrete": lambda: IdentityEnv(4),
    "MultiDiscrete": lambda: IdentityEnvMultiDiscrete(4),
    "MultiBinary": lambda: IdentityEnvMultiBinary(4),
    "Box": lambda: IdentityEnvBox(eps=0.5),
}
MEMORIES: dict[str, dict[str, Any] | None] = {
    "PPO": None,
    "xLSTM": {},
    "xLSTM, scale 1": {"scale": 1.0},
    "xLSTM, scale .1": {"scale": 0.1},
    "sLSTM": {"cell": "slstm"},
    "LSTM": {"cell": "lstm"},
    "GRU": {"cell": "gru"},
}
ENOUGH = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--memories", nargs="+", default=list(MEMORIES), choices=MEMORIES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'seeds that reach 90, mean':<25}" + "".join(f"{world:>20}" for world in WORLDS))
    for memory in arguments.memories:
        print(f"{memory:<25}", end="", flush=True)
        for world in WORLDS:
            rewards = np.array([right_actions(world, MEMORIES[memory], seed) for seed in range(arguments.seeds)])
            print(f"{np.sum(rewards >= ENOUGH):>10}/{arguments.seeds}{rewards.mean():>7.1f}", end="", flush=True)
        print()


def right_actions(world: str, memory: dict[str, Any] | None, seed: int) -> float:
    """Of 100, after SB3's test has trained; the mean of 20 episodes."""
    env = make_vec_env(WORLDS[world], seed=seed)
    settings: dict[str, Any] = {"n_steps": 256, "n_epochs": 4, "seed": seed, "device": "cpu"}
    if world == "Box":
        settings |= {"learning_rate": 1e-3}
    else:
        settings |= {"learning_rate": 2e-3, "gamma": 0.4}
    if memory is None:
        model = PPO("MlpPolicy", env, **settings)
    else:
        model = xLSTMPPO("MlpPolicy", env, policy_kwargs={"memory": memory}, **settings)
    model.learn(1000 if world == "Box" else 1200)
    reward, _ = evaluate_policy(model, make_vec_env(WORLDS[world], n_envs=20, seed=1000 + seed), n_eval_episodes=20)
    return float(reward)


if __name__ == "__main__":
    main()
