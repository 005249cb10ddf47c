"""One cell of the learning benchmark: one algorithm on one environment from one seed."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from xlstm_rl import xLSTMPPO
from xlstm_rl.zoo import Recipe, load_recipe

POINTS = 25  # of a learning curve
EPISODES = 50  # of the evaluation at its end
MEMORIES: dict[str, dict[str, Any]] = {
    "xlstm": {},  # the recipe's
    "xlstm_scale_1": {"scale": 1.0},
    "slstm": {"cell": "slstm"},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
}
ALGORITHMS = (*MEMORIES, "recurrent_ppo", "ppo", "ppo_4_frames")

# RecurrentPPO with what RL Zoo tuned for it; elsewhere it takes the recipe's.
ZOO_POLICY = {"ortho_init": False, "activation_fn": torch.nn.ReLU, "lstm_hidden_size": 64, "net_arch": [64]}
ZOO: dict[str, dict[str, Any]] = {
    "CartPoleNoVel-v1": {
        "n_steps": 32,
        "batch_size": 256,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "n_epochs": 20,
        "learning_rate": LinearSchedule(1e-3, 0, 1),
        "clip_range": LinearSchedule(0.2, 0, 1),
        "policy_kwargs": ZOO_POLICY,
    },
    "PendulumNoVel-v1": {
        "n_steps": 1024,
        "batch_size": 128,
        "gamma": 0.9,
        "learning_rate": 1e-3,
        "use_sde": True,
        "sde_sample_freq": 4,
        "policy_kwargs": ZOO_POLICY,
    },
}


class Cell(NamedTuple):
    environment: str
    algorithm: str
    seed: int


class Plan(NamedTuple):
    """Where cells write to, and until when."""

    csv: Path
    steps: int | None = None  # instead of the recipe's
    checkpoints: Path | None = None
    end: float = float("inf")  # of ``time.time()``


class Curve(BaseCallback):
    """Append the mean reward of the episodes that ended in each part of the training to the CSV; save and stop.

    It saves before a rollout, when all that was collected has been learnt.
    """

    def __init__(self, cell: Cell, plan: Plan, steps: int) -> None:
        super().__init__()
        self.cell, self.plan, self.part = cell, plan, steps / POINTS
        self.rewards: list[float] = []
        self.points = self.saved = 0
        self.stopped = False

    def _on_training_start(self) -> None:
        self.points = self.saved = int(self.num_timesteps / self.part)

    def _on_rollout_start(self) -> None:
        self.stopped = time.time() > self.plan.end
        if self.plan.checkpoints and (self.stopped or self.points > self.saved):
            save(self.model, self.plan.checkpoints, self.cell)
            self.saved = self.points

    def _on_step(self) -> bool:
        if self.stopped:
            return False
        self.rewards += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps >= (self.points + 1) * self.part:
            self.points += 1
            if self.rewards:
                append(self.plan.csv, self.cell, "training", self.num_timesteps, float(np.mean(self.rewards)), 0)
                self.rewards = []
        return True


def train_cell(cell: Cell, plan: Plan) -> str | None:
    """Train and evaluate; the curve and the evaluation are rows of the CSV.

    Returns:
        A line that tells the outcome; None where it was too late to begin.
    """
    if time.time() > plan.end:
        return None
    name = f"{cell.environment} {cell.algorithm} seed {cell.seed}"
    torch.set_num_threads(1)
    recipe = load_recipe(cell.environment)
    steps = plan.steps or recipe.n_timesteps
    model = make_model(cell, recipe)
    if plan.checkpoints and checkpoint(plan.checkpoints, cell).exists():
        model = restored(model, plan.checkpoints, cell)
    curve, began, before = Curve(cell, plan, steps), time.perf_counter(), model.num_timesteps
    model.learn(steps - before, callback=curve, reset_num_timesteps=False)
    fps = (model.num_timesteps - before) / (time.perf_counter() - began)
    if curve.stopped:
        return f"{name}: stopped at {model.num_timesteps:,} ({fps:.0f} steps/s)"
    reward = evaluate(model)
    append(plan.csv, cell, "evaluation", model.num_timesteps, reward, fps)
    if plan.checkpoints:
        for suffix in (".zip", ".pkl"):
            checkpoint(plan.checkpoints, cell).with_suffix(suffix).unlink(missing_ok=True)
    return f"{name}: {reward:.3f} ({fps:.0f} steps/s)"


def checkpoint(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.environment}_{cell.algorithm}_{cell.seed}.zip"


def save(model: BaseAlgorithm, folder: Path, cell: Cell) -> None:
    """The model with its optimiser, and the scales of its environments; a file is replaced whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint(folder, cell)
    scales = model.get_vec_normalize_env()
    if scales is not None:
        scales.save(str(path.with_suffix(".pkl")))
    unfinished = path.with_suffix(".part.zip")
    model.save(unfinished)
    unfinished.replace(path)


def restored(model: BaseAlgorithm, folder: Path, cell: Cell) -> BaseAlgorithm:
    """The saved one in the environments of ``model``, where it begins new episodes with new noise."""
    path, env = checkpoint(folder, cell), model.get_env()
    if isinstance(env, VecNormalize):
        env = VecNormalize.load(str(path.with_suffix(".pkl")), env.venv)
    model = type(model).load(path, env=env, device="cpu")
    model.set_random_seed(cell.seed + model.num_timesteps)
    return model


def make_model(cell: Cell, recipe: Recipe) -> BaseAlgorithm:
    """The algorithm with the recipe's settings, or RL Zoo's where it tuned RecurrentPPO."""
    env, shared = recipe.make_env(seed=cell.seed), {"seed": cell.seed, "device": "cpu"}
    if cell.algorithm in MEMORIES:
        return xLSTMPPO(env=env, **with_memory(recipe.model, MEMORIES[cell.algorithm]), **shared)
    own = ("policy", "policy_kwargs", "seq_len")
    settings = {name: value for name, value in recipe.model.items() if name not in own}
    if cell.algorithm == "recurrent_ppo":
        settings = ZOO.get(cell.environment) or {**settings, "policy_kwargs": ZOO_POLICY}
        return RecurrentPPO("MlpLstmPolicy", scaled(env, cell, settings), **settings, **shared)
    noise = {k: v for k, v in recipe.model.get("policy_kwargs", {}).items() if k == "log_std_init"}
    frames = VecFrameStack(env, 4) if cell.algorithm == "ppo_4_frames" else env
    return PPO("MlpPolicy", scaled(frames, cell, settings), **settings, policy_kwargs=noise, **shared)


def with_memory(settings: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    """``settings`` with another memory, of the same width."""
    policy_kwargs = settings.get("policy_kwargs", {})
    given = dict(policy_kwargs.get("memory", {}))
    if memory.get("cell") in ("lstm", "gru"):
        given.pop("scale", None)  # theirs begin small by themselves
    return {**settings, "policy_kwargs": {**policy_kwargs, "memory": {**given, **memory}}}


def scaled(env: VecEnv, cell: Cell, settings: dict[str, Any]) -> VecEnv:
    """What ours does inside the policy the others have outside, as in RL Zoo: for quantities, not for symbols."""
    measured = cell.environment.partition("-")[0].endswith("NoVel")
    return VecNormalize(env, gamma=settings.get("gamma", 0.99)) if measured else env


def evaluate(model: BaseAlgorithm) -> float:
    """The mean reward of episodes played with the most likely actions."""
    env = model.get_env()
    if isinstance(env, VecNormalize):
        env.training = env.norm_reward = False
    reward, _ = evaluate_policy(model, env, n_eval_episodes=EPISODES)
    return float(reward)


def append(csv: Path, cell: Cell, phase: str, step: int, reward: float, fps: float) -> None:
    """One row, in one write, so that processes do not mix theirs."""
    with csv.open("a") as file:
        file.write(f"{cell.environment},{cell.algorithm},{cell.seed},{phase},{step},{reward:.5g},{fps:.0f}\n")
