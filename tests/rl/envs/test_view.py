"""A MiniGrid agent with a narrow view."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from xlstm_rl.envs import AgentView


class Grid(gym.Env):
    """As MiniGrid's: it draws as many cells as its agent sees."""

    agent_view_size = 7
    action_space = spaces.Discrete(7)

    def __init__(self):
        image = spaces.Box(0, 255, (7, 7, 3), np.uint8)
        self.observation_space = spaces.Dict({"image": image, "direction": spaces.Discrete(4)})

    def reset(self, *, seed=None, options=None):
        return self.see(), {}

    def step(self, action):
        return self.see(), 0.0, False, False, {}

    def see(self):
        size = self.agent_view_size
        return {"image": np.full((size, size, 3), size, np.uint8), "direction": 1}


def test_the_environment_draws_the_narrow_view():
    env = AgentView(gym.wrappers.OrderEnforcing(Grid()), size=5)
    for observation in (env.reset()[0], env.step(0)[0]):
        assert observation["image"].shape == (5, 5, 3)
        assert observation["direction"] == 1
        assert observation in env.observation_space
        assert observation in env.unwrapped.observation_space  # which gymnasium's checker looks at


@pytest.mark.parametrize("view", [3, 5])
def test_it_is_what_minigrids_own_wrapper_shows(view):
    minigrid = pytest.importorskip("minigrid.wrappers")
    ours = AgentView(gym.make("MiniGrid-MemoryS9-v0"), size=view)
    theirs = minigrid.ViewSizeWrapper(gym.make("MiniGrid-MemoryS9-v0"), agent_view_size=view)
    assert ours.observation_space["image"] == theirs.observation_space["image"]
    seen, expected = ours.reset(seed=1)[0], theirs.reset(seed=1)[0]
    for action in np.random.default_rng(0).integers(3, size=100):
        np.testing.assert_array_equal(seen["image"], expected["image"])
        seen, expected = ours.step(action)[0], theirs.step(action)[0]


@pytest.mark.parametrize("size", [1, 4])
def test_a_view_without_a_middle_is_refused(size):
    with pytest.raises(ValueError, match=f"size must be odd and >= 3, got {size}"):
        AgentView(Grid(), size=size)


def test_an_environment_without_a_view_is_refused():
    with pytest.raises(ValueError, match=r"AgentView needs a MiniGrid environment, got .*CartPole"):
        AgentView(gym.make("CartPole-v1"))
