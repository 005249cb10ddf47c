"""The previous action and reward as inputs."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

from tests.rl.conftest import Drift
from xlstm_rl import PreviousInputs

SPACES = [
    (spaces.Discrete(3), 2, [0, 0, 1]),
    (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
    (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
    (spaces.Box(1, 2, (2,), np.float32), np.array([1.5, 2], np.float32), [1.5, 2]),
]


@pytest.mark.parametrize(("space", "action", "encoded"), SPACES, ids=lambda x: str(x)[:20])
def test_an_observation_tells_what_was_done_and_paid(space, action, encoded):
    env = PreviousInputs(Drift(action_space=space))
    observation, _ = env.reset(seed=0)
    assert not observation["previous_action"].any()
    assert observation["previous_reward"] == 0
    observation, reward, *_ = env.step(action)
    np.testing.assert_array_equal(observation["previous_action"], encoded)
    assert observation["previous_reward"] == reward == 1
    assert env.observation_space.contains(observation)
    observation, _ = env.reset()
    assert not observation["previous_action"].any()


def test_it_is_an_environment_for_sb3():
    check_env(PreviousInputs(Drift(action_space=spaces.Box(-1, 1, (2,), np.float32))))


def test_a_dictionary_of_observations_is_extended():
    space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (2,), np.float32)})
    env = PreviousInputs(Drift(observation_space=space), reward=False)
    assert set(env.reset(seed=0)[0]) == {"a", "b", "previous_action"}


def test_a_policy_learns_with_them(tiny_model):
    env = make_vec_env(Drift, 2, wrapper_class=PreviousInputs)
    model = tiny_model(env, policy="MultiInputPolicy").learn(64)
    assert model.logger.name_to_value["train/replay_gap"] < 1e-5


def test_wanting_neither_is_refused():
    with pytest.raises(ValueError, match="needs action=True or reward=True"):
        PreviousInputs(Drift(), action=False, reward=False)
