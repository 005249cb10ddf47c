"""Settings that do not fit each other, the environments or the policy."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy


def test_a_policy_without_memory_is_refused(tiny_model):
    with pytest.raises(ValueError, match="policy must have a memory, got ActorCriticPolicy; use one of"):
        tiny_model(policy=ActorCriticPolicy)


def test_a_buffer_without_sequences_is_refused(tiny_model):
    with pytest.raises(ValueError, match="rollout_buffer_class must hold sequences, got RolloutBuffer"):
        tiny_model(rollout_buffer_class=RolloutBuffer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 24, "seq_len": 16}, r"batch_size .* got 24; use one of \[16, 32\]"),
        ({"seq_len": 8, "burn_in": 9}, "burn_in must be between 0 and seq_len=8, got 9"),
        ({"use_masking": True}, r"use_masking=True needs environments with a method action_masks\(\)"),
        ({"seq_len": 5}, r"seq_len must divide n_steps=16, got 5"),
        ({"n_epochs": 0}, "n_epochs must be >= 1, got 0"),
        ({"n_steps": 0}, r"n_steps must be >= 1, got 0"),
        ({"n_steps": None, "seq_len": 0}, "seq_len must divide n_steps=512, got 0"),
        ({"policy": "MultiInputPolicy"}, r"MultiInputPolicy needs a Dict of observations, got Box.*; use MlpPolicy"),
        ({"policy_kwargs": {"memory": {"layers": 2}}}, "unknown memory option 'layers'"),
        ({"policy_kwargs": {"memory": {"embedding_dim": 10, "num_heads": 3}}}, "num_heads must divide"),
    ],
)
def test_settings_that_do_not_fit_raise_when_the_model_is_made(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**options)


def test_a_batch_size_that_cuts_rows_to_pieces_warns(tiny_model):
    with pytest.warns(UserWarning, match="leave sequences of 1 steps only, and gradients flow back no further"):
        model = tiny_model(batch_size=15)
    assert model.rollout_buffer.seq_len == 1


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3, start=1), r"the observation space Discrete\(3, start=1\) must start at 0"),
        (spaces.Dict({"a": spaces.MultiDiscrete([2, 2], start=[0, 1])}), "must start at 0; wrap the environment"),
        (spaces.MultiDiscrete([[2, 3], [2, 3]]), "must have one dimension; wrap the environment to flatten it"),
        (spaces.Box(-1, 1, (), np.float32), r"wrap the environment to give it shape \(1,\)"),
    ],
    ids=str,
)
def test_an_observation_space_that_sb3_cannot_read_is_named(tiny_model, drift_env, space, message):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=message):
        tiny_model(drift_env(observation_space=space), policy)


def test_actions_that_do_not_start_at_zero_are_named(tiny_model, drift_env):
    with pytest.raises(ValueError, match=r"the action space Discrete\(3, start=-1\) must start at 0"):
        tiny_model(drift_env(action_space=spaces.Discrete(3, start=-1)))
