"""The T-maze: what it shows, pays and how it ends."""

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

from xlstm_rl.envs import TMaze
from xlstm_rl.envs.tmaze import BACK, CORRIDOR, FORWARD, JUNCTION, LEFT, RIGHT, SIGN_LEFT, SIGN_RIGHT


def walk(env, actions):
    """Observations, rewards and the last step's flags."""
    steps = [env.step(action) for action in actions]
    return [step[0] for step in steps], [step[1] for step in steps], steps[-1][2:4]


@pytest.mark.parametrize("seed", range(4))
def test_the_sign_is_shown_at_the_start_alone_and_the_turn_it_names_pays(seed):
    env = TMaze(length=3)
    sign, _ = env.reset(seed=seed)
    turn = {SIGN_LEFT: LEFT, SIGN_RIGHT: RIGHT}[sign]
    observations, rewards, flags = walk(env, [FORWARD, FORWARD, FORWARD, turn])
    assert observations == [CORRIDOR, CORRIDOR, JUNCTION, JUNCTION]
    assert rewards == [0, 0, 0, 1]
    assert flags == (True, False)


def test_the_wrong_turn_ends_the_episode_unpaid():
    env = TMaze(length=1)
    sign, _ = env.reset(seed=0)
    _, rewards, flags = walk(env, [FORWARD, {SIGN_LEFT: RIGHT, SIGN_RIGHT: LEFT}[sign]])
    assert rewards == [0, 0]
    assert flags == (True, False)


def test_both_signs_occur():
    env = TMaze(length=1)
    assert {env.reset(seed=seed)[0] for seed in range(20)} == {SIGN_LEFT, SIGN_RIGHT}


@pytest.mark.parametrize("action", [BACK, LEFT, RIGHT])
def test_a_step_that_does_not_lead_forward_costs(action):
    env = TMaze(length=4)
    env.reset(seed=0)
    observations, rewards, _ = walk(env, [FORWARD, action])
    assert rewards == [0, -0.25]
    assert observations[1] == (CORRIDOR if action != BACK else env.reset(seed=0)[0])


def test_who_never_arrives_is_stopped_by_the_time_limit():
    env = TMaze(length=2)
    env.reset(seed=0)
    _, rewards, flags = walk(env, [FORWARD, BACK] * 3)
    assert flags == (False, True)
    assert sum(rewards) == -1.5


@pytest.mark.parametrize("length", [50, 200])
def test_registered_mazes_keep_gymnasiums_contract(length):
    env = gym.make(f"TMaze{length}-v0").unwrapped
    assert env.length == length
    check_env(env, skip_render_check=True)


def test_a_corridor_without_steps_is_refused():
    with pytest.raises(ValueError, match="length must be >= 1, got 0"):
        TMaze(length=0)
