"""PPO's losses against SB3's lines."""

import pytest
import torch
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch.nn import functional as F

from xlstm_rl.losses import Coefficients, join, ppo_terms

M = 64


@pytest.fixture
def samples():
    torch.manual_seed(0)
    old_values, old_log_prob, advantages, returns = torch.randn(4, M, dtype=torch.float64)
    return RolloutBufferSamples(torch.empty(0), torch.empty(0), old_values, old_log_prob, advantages, returns)


def sb3s_loss(samples, values, log_prob, entropy, weights):
    advantages = samples.advantages
    if weights.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = torch.exp(log_prob - samples.old_log_prob)
    bounded = torch.clamp(ratio, 1 - weights.clip_range, 1 + weights.clip_range)
    policy = -torch.min(advantages * ratio, advantages * bounded).mean()
    if weights.clip_range_vf is not None:
        change = torch.clamp(values - samples.old_values, -weights.clip_range_vf, weights.clip_range_vf)
        values = samples.old_values + change
    entropy_loss = -torch.mean(-log_prob) if entropy is None else -torch.mean(entropy)
    return policy + weights.entropy * entropy_loss + weights.value * F.mse_loss(samples.returns, values)


@pytest.mark.parametrize("has_entropy", [True, False])
@pytest.mark.parametrize("entropy", [0.0, 0.1])
@pytest.mark.parametrize("clip_range_vf", [None, 0.5])
@pytest.mark.parametrize("normalize", [True, False])
def test_losses_and_gradients_are_sb3s(samples, has_entropy, entropy, clip_range_vf, normalize):
    weights = Coefficients(0.2, clip_range_vf, entropy, 0.7, normalize)
    torch.manual_seed(1)
    given = [torch.randn(M, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    given[1].data.mul_(0.2).add_(samples.old_log_prob)
    if not has_entropy:
        given[2] = None
    expected, (terms, gradients) = sb3s_loss(samples, *given, weights), ppo_terms(samples, *given, weights)
    torch.testing.assert_close(terms.loss(weights), expected.detach())
    expected.backward()
    zero = torch.zeros(M, dtype=torch.float64)
    for tensor, ours in zip(given, gradients, strict=True):
        theirs = zero if tensor is None or tensor.grad is None else tensor.grad
        torch.testing.assert_close(zero if ours is None else ours, theirs)


def test_a_single_step_is_not_normalised(samples):
    one = RolloutBufferSamples(*(field[:1] for field in samples))
    weights = Coefficients(0.2, None, 0.0, 0.5, True)
    terms, gradients = ppo_terms(one, one.old_values, one.old_log_prob, None, weights)
    assert torch.isfinite(terms.loss(weights))
    assert torch.isfinite(gradients.log_prob).all()


def test_equal_policies_diverge_nowhere(samples):
    weights = Coefficients(0.2, None, 0.0, 0.5, True)
    terms, _ = ppo_terms(samples, samples.returns, samples.old_log_prob, None, weights)
    for zero in (terms.error, terms.log_ratio, terms.divergence(), terms.clipped(0.2)):
        assert (zero == 0).all()


def test_statistics_of_policies_that_differ_are_sb3s(samples):
    ratio = torch.linspace(0.5, 1.5, M, dtype=torch.float64)
    log_prob = samples.old_log_prob + ratio.log()
    terms, _ = ppo_terms(samples, samples.returns, log_prob, None, Coefficients(0.2, None, 0.0, 0.5, True))
    torch.testing.assert_close(terms.divergence(), ratio - 1 - ratio.log())
    torch.testing.assert_close(terms.clipped(0.2).mean(), ((ratio - 1).abs() > 0.2).double().mean())


def test_a_mean_over_minibatches_counts_a_small_one_as_much_as_a_large_one(samples):
    weights = Coefficients(0.2, None, 0.0, 0.5, True)
    parts = [RolloutBufferSamples(*(field[rows] for field in samples)) for rows in (slice(0, 48), slice(48, M))]
    minibatches = [ppo_terms(part, part.old_values, part.old_log_prob, None, weights)[0] for part in parts]
    joined, shares = join(minibatches)
    expected = torch.stack([terms.error.square().mean() for terms in minibatches]).mean()
    torch.testing.assert_close(joined.error.square() @ shares, expected)
