"""Frames per second of training, and microseconds of a single action, beside Stable-Baselines3's and sb3-contrib's PPO.

CartPole-v1, 8 environments x 128 steps, minibatches of 128 steps, 10 epochs, one thread; memories of width 64.

    python benchmarks/rl_speed.py [--rounds 3] [--seconds 10] [--device cpu] [--cpu-time]

Training takes turns, one model after the other in each round, and the best round counts, so that other work on the
machine touches all alike. The last column is the ratio to SB3's PPO without memory. --cpu-time counts the time that
this thread had instead of the clock's, for a machine that others use too; on an idle one they are the same.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from xlstm_rl import NumpyActor, xLSTMPPO
from xlstm_rl.portable import portable_policy

SETTINGS = {"n_steps": 128, "batch_size": 128, "n_epochs": 10, "seed": 0}
ROLLOUT = 8 * 128

Clock = Callable[[], float]  # in seconds


class RepairedPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's without its loop over steps: sequences are cut at episode starts, so only their first can reset."""

    @staticmethod
    def _process_sequence(features, states, episode_starts, lstm):
        rows = states[0].shape[1]
        kept = (1.0 - episode_starts.reshape(rows, -1)[:, 0]).view(1, rows, 1)
        sequence = features.reshape(rows, -1, lstm.input_size).swapaxes(0, 1)
        output, states = lstm(sequence, (kept * states[0], kept * states[1]))
        return output.transpose(0, 1).flatten(0, 1), states


def models(device: str) -> dict[str, Callable[[], Any]]:
    """What is compared: a name, and how the model is made."""

    def ours(**memory: Any) -> Callable[[], Any]:
        return lambda: make(xLSTMPPO, "MlpPolicy", policy_kwargs={"memory": {"embedding_dim": 64, **memory}})

    def contrib(policy: Any, width: int) -> Callable[[], Any]:
        return lambda: make(RecurrentPPO, policy, policy_kwargs={"lstm_hidden_size": width})

    def make(kind: Any, policy: Any, **options: Any) -> Any:
        return kind(policy, make_vec_env("CartPole-v1", 8, seed=0), device=device, **SETTINGS, **options)

    return {
        "PPO, no memory": lambda: make(PPO, "MlpPolicy"),
        "RecurrentPPO as shipped, h 64": contrib("MlpLstmPolicy", 64),
        "RecurrentPPO repaired, h 64": contrib(RepairedPolicy, 64),
        "xLSTMPPO, 1 mLSTM block": ours(),
        "xLSTMPPO, 1 sLSTM block": ours(cell="slstm"),
        "xLSTMPPO, mLSTM + sLSTM": ours(num_blocks=2, slstm_at=(1,)),
        "xLSTMPPO, lstm": ours(cell="lstm"),
        "xLSTMPPO, gru": ours(cell="gru"),
    }


def frames_per_second(model: Any, seconds: float, clock: Clock) -> float:
    """Of whole iterations, for about this long."""
    began, frames = clock(), 0
    while clock() - began < seconds:
        model.learn(ROLLOUT, reset_num_timesteps=False)
        frames += ROLLOUT
    return frames / (clock() - began)


def microseconds(step: Callable[[], Any], clock: Clock, calls: int = 100, rounds: int = 20) -> float:
    """Of a call, the best of several rounds."""
    times = []
    for _ in range(rounds):
        began = clock()
        for _ in range(calls):
            step()
        times.append((clock() - began) / calls)
    return 1e6 * min(times)


def acting(policies: dict[str, Any], batch: int, clock: Clock) -> dict[str, float]:
    """Microseconds to act for ``batch`` observations with a state that is carried."""
    observation = np.random.default_rng(0).normal(size=(batch, 4)).astype(np.float32)
    starts = np.zeros(batch, dtype=bool)

    def predict(model: Any) -> Callable[[], Any]:
        _, state = model.predict(observation)
        return lambda: model.predict(observation, state, starts, deterministic=True)

    def act(actor: Any) -> Callable[[], Any]:
        state = actor.initial_state(batch)
        return lambda: actor(observation, state, starts)

    ours = policies["xLSTMPPO, 1 mLSTM block"]
    rows = {f"{name}: predict": predict(model) for name, model in policies.items()}
    rows["xLSTMPPO, 1 mLSTM block: model.actor()"] = act(ours.actor(n_envs=batch))
    rows["xLSTMPPO, 1 mLSTM block: NumpyActor"] = act(NumpyActor(*portable_policy(ours.policy)))
    return {name: microseconds(step, clock) for name, step in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each model in each round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="count this thread's time instead of the clock's")
    options = parser.parse_args()
    clock = time.thread_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(1)
    gym.logger.min_level = gym.logger.ERROR

    trained = {name: make() for name, make in models(options.device).items()}
    best = dict.fromkeys(trained, 0.0)
    for model in trained.values():
        model.learn(ROLLOUT)  # what happens once
    for _ in range(options.rounds):
        for name, model in trained.items():
            best[name] = max(best[name], frames_per_second(model, options.seconds, clock))
    print(f"{'training':42}{'fps':>8}{'ratio':>8}")
    for name, fps in best.items():
        print(f"{name:42}{fps:8.0f}{fps / best['PPO, no memory']:8.2f}")

    for batch in (1, 8):
        print(f"\n{f'acting, B = {batch}':42}{'us':>8}")
        for name, time_of in acting(trained, batch, clock).items():
            print(f"{name:42}{time_of:8.1f}")


if __name__ == "__main__":
    main()
