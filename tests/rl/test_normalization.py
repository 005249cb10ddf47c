"""Running scales: right moments, unchanged values, and a policy that learns alike in any units."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from tests.rl.conftest import RecallCue
from xlstm_rl import xLSTMPPO
from xlstm_rl.normalization import CLIP, FeatureNorm, ReturnScale


def test_features_pass_unchanged_before_anything_was_observed():
    features = torch.randn(5, 3)
    torch.testing.assert_close(FeatureNorm(3)(features), features)


def test_features_are_standardised_with_the_moments_of_all_batches():
    batches = [torch.randn(size, 3) * torch.tensor([0.01, 1.0, 50.0]) + 7 for size in (10, 1, 200)]
    norm = FeatureNorm(3)
    for batch in batches:
        norm.observe(batch)
    everything = torch.cat(batches)
    torch.testing.assert_close(norm.mean, everything.double().mean(0))
    torch.testing.assert_close(norm.var, everything.double().var(0, unbiased=False))
    standard = norm(everything)
    torch.testing.assert_close(standard.std(0, unbiased=False), torch.ones(3), rtol=1e-3, atol=1e-3)


def test_a_feature_that_never_moved_is_centred_and_outliers_are_clipped():
    norm = FeatureNorm(2)
    norm.observe(torch.tensor([[4.0, -1.0], [4.0, 1.0]]))
    assert norm(torch.tensor([[4.0, 1e9]])).tolist() == [[0.0, CLIP]]


@pytest.mark.parametrize(("mean", "deviation", "standard"), [(0.0, 1e-9, 1.0), (1e3, 1e-4, 1e-4), (1e-4, 1e-8, 1.0)])
def test_a_feature_of_any_size_counts_as_moving_above_its_rounding(mean, deviation, standard):
    norm, features = FeatureNorm(1), torch.tensor([[mean - deviation], [mean + deviation]], dtype=torch.float64)
    norm.observe(features)
    assert norm(features).abs().max().item() == pytest.approx(standard, rel=1e-3)


def test_following_the_returns_changes_no_predicted_value():
    layer, scale, latents = nn.Linear(4, 1), ReturnScale(), torch.randn(6, 4)
    for size in (1.0, 300.0, 20.0):
        before = scale(layer(latents))
        scale.observe(size * torch.randn(100) + size, layer)
        torch.testing.assert_close(scale(layer(latents)), before, rtol=1e-4, atol=1e-4 * size)


def test_a_jump_of_the_returns_widens_their_scale():
    layer, scale = nn.Linear(4, 1), ReturnScale()
    scale.observe(torch.tensor([-0.01, 0.01]), layer)
    scale.observe(torch.tensor([99.99, 100.01]), layer)
    assert scale.mean.item() == pytest.approx(50, rel=1e-3)  # half of the way
    assert scale.deviation.item() == pytest.approx(50, rel=1e-3)  # of half at 0, half at 100


def test_constant_returns_leave_the_scale_alone():
    layer, scale = nn.Linear(4, 1), ReturnScale()
    scale.observe(torch.zeros(10), layer)
    assert (scale.mean.item(), scale.deviation.item()) == (0.0, 1.0)


def test_scales_are_part_of_the_saved_policy(tiny_model, tmp_path):
    model = tiny_model()
    model.learn(64)
    assert model.policy.feature_norm.count == 64
    model.save(tmp_path / "model")
    loaded = xLSTMPPO.load(tmp_path / "model")
    for name in ("feature_norm.mean", "feature_norm.var", "return_scale.mean", "return_scale.deviation"):
        assert torch.equal(loaded.policy.state_dict()[name], model.policy.state_dict()[name])


def test_normalize_false_leaves_observations_and_returns_as_they_are(tiny_model):
    model = tiny_model(policy_kwargs={"normalize": False})
    model.learn(64)
    assert isinstance(model.policy.feature_norm, nn.Identity)
    assert model.policy.return_scale.deviation == 1
    assert not xLSTMPPO.policy_aliases["MlpPolicy"](**model.policy._get_constructor_parameters()).normalize


class Units(gym.Wrapper):
    """The same world with observations and rewards in other units."""

    def __init__(self, env, observation, reward):
        super().__init__(env)
        self.units = observation, reward

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        return observation * np.float32(self.units[0]), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation * np.float32(self.units[0]), self.units[1] * reward, terminated, truncated, info


@pytest.mark.parametrize(("observation", "reward"), [(1, 1), (1e-2, 1e3), (1e-7, 1e-6)])
def test_the_cue_is_learned_in_any_units(observation, reward):
    units = {"observation": observation, "reward": reward}
    env = make_vec_env(RecallCue, 8, seed=0, wrapper_class=Units, wrapper_kwargs=units)
    model = xLSTMPPO(
        "MlpPolicy",
        env,
        n_steps=40,
        learning_rate=lambda remaining: 2e-3 * remaining,  # a larger one forgets the cue now and then
        seed=0,
        policy_kwargs={"memory": {"embedding_dim": 16, "num_heads": 2}},
    )
    model.learn(8 * 40 * 20)
    recent = np.mean([episode["r"] for episode in model.ep_info_buffer])  # measured inside the wrapper
    assert recent > 0.9  # of sampled actions; chance is 0.5
