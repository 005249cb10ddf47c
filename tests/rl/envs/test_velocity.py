"""Environments with hidden velocities."""

import gymnasium as gym
import numpy as np
import pytest

from xlstm_rl import MaskVelocity
from xlstm_rl.envs.velocity import VELOCITIES


@pytest.mark.parametrize("env_id", sorted(VELOCITIES))
def test_velocities_read_zero_and_everything_else_stays(env_id):
    masked, plain = MaskVelocity(gym.make(env_id)), gym.make(env_id)
    masked.reset(seed=3)
    plain.reset(seed=3)
    action = plain.action_space.sample()
    for _ in range(3):
        seen, truth = masked.step(action)[0], plain.step(action)[0].copy()
        truth[list(VELOCITIES[env_id])] = 0
        np.testing.assert_array_equal(seen, truth)


@pytest.mark.parametrize("env_id", ["CartPoleNoVel-v1", "PendulumNoVel-v1", "MountainCarContinuousNoVel-v0"])
def test_masked_environments_can_be_made_by_name(env_id):
    env = gym.make(env_id)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_masked_cartpole_keeps_its_time_limit():
    env = gym.make("CartPoleNoVel-v1")
    assert env.get_wrapper_attr("_max_episode_steps") == 500


def test_an_environment_whose_velocities_are_unknown_is_refused():
    with pytest.raises(ValueError, match=r"velocities of 'Acrobot-v1' are not known; use one of \['CartPole-v1'"):
        MaskVelocity(gym.make("Acrobot-v1"))
