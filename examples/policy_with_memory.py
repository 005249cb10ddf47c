"""Balance a pole without seeing its velocities: PPO with an xLSTM memory beside PPO without one.

python examples/policy_with_memory.py --steps 40000 --output policy_with_memory.png
"""

import argparse
import time

import numpy as np
import torch
from matplotlib import pyplot as plt
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from xlstm_rl import xLSTMPPO


class EpisodeRewards(BaseCallback):
    """Keep (time step, reward) of every episode that ends in training."""

    def _on_training_start(self) -> None:
        self.episodes: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.episodes += [(self.num_timesteps, reward) for reward in ended]
        return True


def train(algorithm: type[PPO], steps: int, seed: int) -> tuple[np.ndarray, float]:
    """The rewards of the training's episodes, (episodes, 2), and the mean reward of the trained policy."""
    env = make_vec_env("CartPoleNoVel-v1", n_envs=8, seed=seed)
    model = algorithm("MlpPolicy", env, device="cpu", seed=seed)
    callback, start = EpisodeRewards(), time.perf_counter()
    model.learn(steps, callback=callback)
    seconds = time.perf_counter() - start
    reward, _ = evaluate_policy(model, env, n_eval_episodes=20)
    print(f"{algorithm.__name__:>9}: mean reward {reward:5.1f} of 500 after {steps} steps in {seconds:.0f} s")
    return np.array(callback.episodes), reward


def draw(runs: dict[str, tuple[np.ndarray, float]], output: str) -> None:
    """Single training episodes as dots, the mean of 30 as a line, the trained policy's evaluation as a diamond."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for (name, (episodes, reward)), colour in zip(runs.items(), ("#c2410c", "#64748b"), strict=True):
        steps, rewards = episodes.T
        mean = np.convolve(rewards, np.ones(30) / 30, mode="valid")
        axes.plot(steps, rewards, ".", color=colour, alpha=0.18, markersize=4, markeredgewidth=0)
        axes.plot(steps[29:], mean, color=colour, linewidth=2.2, label=f"{name}, training")
        axes.plot(steps[-1], reward, "D", color=colour, label=f"{name}, evaluated: {reward:.0f}", clip_on=False)
    axes.set(xlabel="environment steps", ylabel="episode reward", ylim=(0, 520))
    axes.set_title("CartPole without velocities", loc="left", weight="bold")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="center right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    figure.savefig(output, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="policy_with_memory.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small are slower on more
    runs = {
        "xLSTM memory": train(xLSTMPPO, arguments.steps, arguments.seed),
        "no memory": train(PPO, arguments.steps, arguments.seed),
    }
    draw(runs, arguments.output)
    print(f"learning curves: {arguments.output}")


if __name__ == "__main__":
    main()
