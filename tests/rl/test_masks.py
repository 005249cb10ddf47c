"""Action masks of the environments, together with memory."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from tests.rl.conftest import Drift
from xlstm_rl import NumpyActor, xLSTMPPO
from xlstm_rl.portable import portable_policy


class Alternating(Drift):
    """Allows the even actions at even steps and the odd ones at odd steps."""

    def __init__(self, action_space):
        super().__init__(length=5, action_space=action_space)

    def action_masks(self):
        space = self.action_space
        size = {spaces.Discrete: 4, spaces.MultiDiscrete: 4, spaces.MultiBinary: 4}[type(space)]
        return np.arange(size) % 2 == self.t % 2

    def step(self, action):
        assert (np.asarray(action) == self.t % 2).all() or isinstance(self.action_space, spaces.Discrete)
        assert np.asarray(action).flat[0] % 2 == self.t % 2, "a masked action was taken"
        return super().step(action)


SPACES = [spaces.Discrete(4), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)]


def make_env(space=SPACES[0]):
    return make_vec_env(Alternating, 2, seed=0, env_kwargs={"action_space": space})


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_no_masked_action_is_taken_and_training_sees_the_same_masks(tiny_model, space):
    model = tiny_model(make_env(space), learning_rate=0.01, seq_len=4).learn(128)
    assert model.logger.name_to_value["train/replay_gap"] < 1e-5


def test_predict_obeys_the_masks_it_is_given(tiny_model):
    model = tiny_model(make_env())
    observations = model.env.reset()
    for only in range(4):
        masks = np.arange(4)[None].repeat(2, axis=0) == only
        assert (model.predict(observations, action_masks=masks)[0] == only).all()


def test_sb3_contribs_evaluation_passes_masks_on(tiny_model):
    evaluation = pytest.importorskip("sb3_contrib.common.maskable.evaluation")
    reward, _ = evaluation.evaluate_policy(tiny_model(make_env()), make_env(), n_eval_episodes=4, warn=False)
    assert reward == 5


def test_masks_can_be_left_aside(tiny_model):
    model = tiny_model(make_env(), use_masking=False)
    assert model.rollout_buffer.mask_size == 0


def test_a_model_with_masks_is_saved_and_loaded(tiny_model, tmp_path):
    tiny_model(make_env()).learn(32).save(tmp_path / "model.zip")
    loaded = xLSTMPPO.load(tmp_path / "model.zip", env=make_env(), device="cpu")
    assert loaded.learn(32).rollout_buffer.mask_size == 4


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_an_environment_that_allows_nothing_is_named(tiny_model, space):
    class Stuck(Alternating):
        def action_masks(self):
            return np.array([True, True, False, False]) & (type(space) is not spaces.Discrete)

    env = make_vec_env(Stuck, 2, env_kwargs={"action_space": space})
    choice = "" if type(space) is spaces.Discrete else "choice 1 of "
    with pytest.raises(ValueError, match=f"action_masks must allow at least one action .* none for {choice}row 0"):
        tiny_model(env).learn(32)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((2, 3)), r"action_masks must be \(2, 4\) for Discrete\(4\), got shape \(2, 3\)"),
        (np.ones(4), r"got shape \(4,\)"),
    ],
)
def test_masks_of_a_wrong_size_are_refused(tiny_model, masks, message):
    model = tiny_model(make_env())
    with pytest.raises(ValueError, match=message):
        model.predict(model.env.reset(), action_masks=masks)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_masks_that_leave_no_choice_are_refused_by_all_that_act(tiny_model, space):
    """Where nothing is allowed all actions would be equally likely, forbidden as they are."""
    model, masks = tiny_model(make_env(space)), np.ones((2, 4), dtype=bool)
    masks[1, 2:] = False
    if type(space) is spaces.Discrete:
        masks[1] = False
    for act in (model.predict, model.actor(2), NumpyActor(*portable_policy(model.policy))):
        with pytest.raises(ValueError, match=r"must allow at least one action .* got none for .*row 1"):
            act(model.env.reset(), action_masks=masks)
