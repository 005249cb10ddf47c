"""Quick distributions against SB3's own, and masks."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3

from xlstm_rl.distributions import FORBIDDEN, mask_distribution, mask_parts, quicker

B = 5
SPACES = [spaces.Discrete(4), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3), spaces.Box(-1, 1, (2,), np.float32)]


def pair(space):
    """Ours and SB3's of the same random parameters."""
    torch.manual_seed(0)
    theirs = sb3.make_proba_distribution(space)
    ours = quicker(copy.copy(theirs))
    net = theirs.proba_distribution_net(6)
    net, extra = net if isinstance(net, tuple) else (net, None)
    parameters = [net(3 * torch.randn(B, 6))] + ([] if extra is None else [extra])
    return ours.proba_distribution(*parameters), theirs.proba_distribution(*parameters)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_closed_forms_equal_torchs(space):
    ours, theirs = pair(space)
    actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.mode(), theirs.mode())


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_samples_have_the_shape_and_the_probabilities_that_they_should(space):
    ours, theirs = pair(space)
    assert ours.sample().shape == theirs.sample().shape
    means = [torch.stack([d.log_prob(d.sample()) for _ in range(2000)]).mean().item() for d in (ours, theirs)]
    assert means[0] == pytest.approx(means[1], abs=0.1)  # minus the entropy


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_torchs_own_is_there_for_those_who_look_inside(space):
    ours, theirs = pair(space)
    for mine, given in zip(parts(ours), parts(theirs), strict=True):
        torch.testing.assert_close(mine.mean, given.mean, equal_nan=True)
        torch.testing.assert_close(mine.entropy(), given.entropy())


def parts(distribution):
    inside = distribution.distribution
    return inside if isinstance(inside, list) else [inside]


def test_a_batch_leaves_the_policys_own_distribution_alone():
    own = quicker(sb3.CategoricalDistribution(3))
    own.proba_distribution(torch.randn(2, 3, requires_grad=True) * 2)
    copy.deepcopy(own)  # a graph could not be copied
    assert not hasattr(own, "log_probs")


@pytest.mark.parametrize("space", SPACES[:3], ids=str)
def test_a_masked_action_is_never_taken_and_carries_no_uncertainty(space):
    ours, _ = pair(space)
    allowed = torch.ones(B, sum(mask_parts(space)), dtype=torch.bool)
    allowed[:, 0] = False  # the first action; or the first switch's off
    masked = mask_distribution(ours, allowed)
    for _ in range(50):
        first = masked.sample().view(B, -1)[:, 0]
        assert (first == 1).all() if isinstance(space, spaces.MultiBinary) else (first != 0).all()
    assert masked.mode().view(B, -1)[:, 0].all()
    assert masked.log_prob(torch.zeros_like(masked.mode())).max() < FORBIDDEN / 10
    assert torch.isfinite(masked.entropy()).all()
    everything = mask_distribution(ours, torch.ones_like(allowed))
    torch.testing.assert_close(everything.entropy(), ours.entropy())


def test_masks_equal_sb3_contribs():
    maskable = pytest.importorskip("sb3_contrib.common.maskable.distributions")
    logits, masks = torch.randn(B, 5), torch.rand(B, 5) > 0.4
    masks[:, [0, 3]] = True
    for space in (spaces.Discrete(5), spaces.MultiDiscrete([3, 2])):
        theirs = maskable.make_masked_proba_distribution(space).proba_distribution(logits)
        theirs.apply_masking(masks)
        ours = mask_distribution(quicker(sb3.make_proba_distribution(space)).proba_distribution(logits), masks)
        torch.testing.assert_close(ours.entropy(), theirs.entropy())
        torch.testing.assert_close(ours.log_prob(theirs.mode()), theirs.log_prob(theirs.mode()))


def test_a_space_without_choices_has_no_masks():
    with pytest.raises(ValueError, match="action masks need a Discrete, MultiDiscrete or MultiBinary action space"):
        mask_parts(SPACES[3])
