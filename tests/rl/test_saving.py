"""A model saved, loaded, copied."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import set_random_seed

from xlstm_rl import xLSTMPPO


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


def test_a_loaded_model_predicts_and_learns_on_as_the_saved_one(tiny_model, drift_env, tmp_path):
    model = tiny_model(seq_len=8, batch_size=16).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = xLSTMPPO.load(tmp_path / "model.zip", device="cpu")
    observations = model.env.reset()
    for ours, theirs in zip(
        model.predict(observations, deterministic=True), loaded.predict(observations, deterministic=True), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)

    for continued in (model, loaded):
        continued.env = None
        continued.set_env(drift_env(hazard=0.1, seed=9))
        set_random_seed(9)
        continued.learn(64)
    assert torch.equal(parameters(model), parameters(loaded))
    assert (loaded.seq_len, loaded.batch_size) == (8, 16)


def test_a_model_loads_for_another_number_of_environments(tiny_model, drift_env, tmp_path):
    tiny_model(drift_env(n_envs=2)).learn(32).save(tmp_path / "model.zip")
    loaded = xLSTMPPO.load(tmp_path / "model.zip", env=drift_env(n_envs=3), device="cpu")
    assert loaded.learn(48).num_timesteps == 48


def test_a_rollout_that_nobody_sized_fits_the_environments_that_a_model_is_loaded_for(drift_env, tmp_path):
    xLSTMPPO("MlpPolicy", drift_env(n_envs=8), device="cpu").save(tmp_path / "model.zip")
    loaded, told = (
        xLSTMPPO.load(tmp_path / "model.zip", env=drift_env(n_envs=2), device="cpu", **options)
        for options in ({}, {"n_steps": 256})
    )
    assert (loaded.n_steps, told.n_steps) == (512, 256)


def test_a_rollout_that_somebody_sized_stays_as_it_is(tiny_model, drift_env, tmp_path):
    tiny_model(drift_env(n_envs=4), n_steps=128).save(tmp_path / "model.zip")
    assert xLSTMPPO.load(tmp_path / "model.zip", env=drift_env(n_envs=2), device="cpu").n_steps == 128


def test_the_carried_memory_is_saved_when_asked(tiny_model, tmp_path):
    model = tiny_model().learn(32)
    model.save(tmp_path / "plain.zip")
    model.save(tmp_path / "resume.zip", include=["_last_state"])
    plain, resume = (xLSTMPPO.load(tmp_path / name, device="cpu") for name in ("plain.zip", "resume.zip"))
    assert plain._last_state is None
    assert torch.equal(resume._last_state, model._last_state)


def test_training_goes_on_in_the_middle_of_episodes_as_if_it_had_never_stopped(tiny_model, tmp_path):
    model = tiny_model().learn(32)
    model.save(tmp_path / "resume.zip", include=["_last_state"])
    env = copy.deepcopy(model.get_env())
    resumed = xLSTMPPO.load(tmp_path / "resume.zip", env=env, force_reset=False, device="cpu")
    for continued in (model, resumed):
        set_random_seed(7)
        continued.learn(64, reset_num_timesteps=False)
    assert torch.equal(parameters(model), parameters(resumed))


def test_parameters_move_from_model_to_model(tiny_model):
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    other.set_parameters(model.get_parameters())
    assert torch.equal(parameters(model), parameters(other))


def test_a_policy_can_be_copied(tiny_model):
    model = tiny_model()
    twin = copy.deepcopy(model.policy)
    observations = model.env.reset()
    np.testing.assert_array_equal(twin.predict(observations)[1][0], model.policy.predict(observations)[1][0])


def test_a_policy_whose_exploration_depends_on_the_state_can_be_copied_after_training(tiny_model, drift_env):
    env = drift_env(action_space=spaces.Box(-1, 1, (2,), np.float32))
    model = tiny_model(env, use_sde=True, sde_sample_freq=4).learn(1)
    observations = model.env.reset()
    twin = copy.deepcopy(model.policy)
    np.testing.assert_array_equal(twin.predict(observations)[0], model.policy.predict(observations)[0])


def test_an_environment_of_another_space_is_refused(tiny_model, drift_env, tmp_path):
    tiny_model().save(tmp_path / "model.zip")
    other = drift_env(observation_space=spaces.Box(-1, 1, (3,), np.float32))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        xLSTMPPO.load(tmp_path / "model.zip", env=other)
