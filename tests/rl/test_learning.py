"""It learns where memory matters, and only there with memory."""

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from xlstm_rl import xLSTMPPO

SETTINGS = {"n_steps": 20, "n_epochs": 10, "learning_rate": 1e-3, "gamma": 0.9, "seed": 0, "device": "cpu"}


@pytest.mark.parametrize("slstm_at", [(), (0,)], ids=["mLSTM", "sLSTM"])
def test_a_cue_of_the_first_step_is_recalled_at_the_last(recall_env, slstm_at):
    memory = {"embedding_dim": 16, "num_blocks": 1, "num_heads": 2, "slstm_at": slstm_at}
    policy_kwargs = {"memory": memory, "net_arch": [16]}
    model = xLSTMPPO("MlpPolicy", recall_env(), policy_kwargs=policy_kwargs, **SETTINGS).learn(3200)
    reward, _ = evaluate_policy(model, recall_env(seed=1), n_eval_episodes=100, warn=False)
    assert reward > 0.95


def test_without_memory_the_cue_is_a_coin_toss(recall_env):
    model = PPO("MlpPolicy", recall_env(), batch_size=40, policy_kwargs={"net_arch": [16]}, **SETTINGS).learn(3200)
    reward, _ = evaluate_policy(model, recall_env(seed=1), n_eval_episodes=100, warn=False)
    assert 0.3 < reward < 0.7


def test_cartpole_is_balanced_without_its_velocities():
    """A memoryless policy stays near 41."""
    env = make_vec_env("CartPoleNoVel-v1", n_envs=8, seed=0)
    memory = {"embedding_dim": 32, "num_blocks": 1}
    model = xLSTMPPO("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"memory": memory}).learn(20_000)
    reward, _ = evaluate_policy(model, env, n_eval_episodes=16)
    assert reward > 120
