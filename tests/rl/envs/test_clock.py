"""The clock beside the observation."""

import gymnasium as gym
import numpy as np
import pytest

from xlstm_rl.envs import EpisodeClock, TMaze


def clock_of(observation, periods):
    return observation[-2 * len(periods) :]


def test_the_clock_counts_the_steps_of_the_episode_and_starts_anew():
    env = EpisodeClock(TMaze(length=9), periods=(4, 10))
    for _ in range(2):
        observation, _ = env.reset(seed=0)
        for steps in range(6):
            angles = 2 * np.pi * steps / np.array([4, 10])
            expected = np.concatenate([np.sin(angles), np.cos(angles)])
            np.testing.assert_allclose(clock_of(observation, (4, 10)), expected, atol=1e-6)
            assert env.observation_space.contains(observation)
            observation = env.step(0)[0]


def test_the_observation_stands_flat_before_the_clock():
    env = EpisodeClock(TMaze(length=9), periods=(4,))
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation[:4], np.eye(4)[env.unwrapped.sign])
    assert env.observation_space.shape == (6,)


def test_it_keeps_the_bounds_of_the_observation():
    plain = gym.make("CartPole-v1")
    space = EpisodeClock(gym.make("CartPole-v1")).observation_space
    np.testing.assert_array_equal(space.high[:4], plain.observation_space.high)
    assert (space.low[4:] == -1).all()


@pytest.mark.parametrize("periods", [(), (4, 1)])
def test_periods_that_tell_nothing_are_refused(periods):
    with pytest.raises(ValueError, match="periods must be two steps or more"):
        EpisodeClock(TMaze(length=9), periods=periods)
