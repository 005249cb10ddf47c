"""SB3's networks in one call, and where they must be called themselves."""

import pytest
import torch
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn

from tests.kernels.recurrences import needs_core
from xlstm_rl import networks
from xlstm_rl.networks import actor_latent, critic_latent, latents, snapshot

ARCHITECTURES = {
    "SB3's": ([64, 64], nn.Tanh),
    "of different widths": ({"pi": [16], "vf": [32, 48]}, nn.Tanh),
    "a critic without layers": ({"pi": [16], "vf": []}, nn.Tanh),
    "none": ([], nn.Tanh),
    "other activations": ([64], nn.ReLU),
    "odd widths": ([10, 7], nn.Tanh),
}


@pytest.fixture
def calls(monkeypatch):
    """How often the one call was made."""
    seen = []

    def spy(*arguments):
        seen.append(arguments)
        return real(*arguments)

    real = networks.tanh_mlps
    monkeypatch.setattr(networks, "tanh_mlps", spy)
    return seen


def extractor_of(net_arch, activation=nn.Tanh):
    torch.manual_seed(0)
    return MlpExtractor(12, net_arch, activation, device="cpu")


@pytest.mark.parametrize(("net_arch", "activation"), ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("shared", [True, False], ids=["one input", "two inputs"])
def test_latents_and_gradients_are_sb3s(net_arch, activation, shared):
    extractor = extractor_of(net_arch, activation)
    pi = torch.randn(20, 12, requires_grad=True)
    vf = pi if shared else torch.randn(20, 12, requires_grad=True)
    expected = extractor.forward_actor(pi), extractor.forward_critic(vf)
    for found in (latents(extractor, pi, vf), (actor_latent(extractor, pi), critic_latent(extractor, vf))):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    wanted = [pi, *([] if shared else [vf]), *extractor.parameters()]
    loss, reference = (sum(y.square().sum() for y in ys) for ys in (latents(extractor, pi, vf), expected))
    for ours, theirs in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(reference, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_core
def test_networks_that_read_the_same_run_in_one_call(calls):
    features = torch.randn(4, 12)
    latents(extractor_of([16]), features, features)
    assert len(calls) == 1


def test_a_hook_on_a_layer_is_called(calls):
    extractor, features, heard = extractor_of([16]), torch.randn(4, 12), []
    extractor.policy_net[0].register_forward_hook(lambda *arguments: heard.append(arguments))
    latents(extractor, features, features)
    assert len(heard) == 1


def test_a_snapshot_serves_steps_without_gradients_alone():
    extractor, features = extractor_of([16]), torch.randn(4, 12)
    stepper, before = snapshot(extractor), extractor(features)[0].detach()
    extractor.policy_net[0].weight.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(latents(extractor, features, features, stepper)[0], before)
    after = extractor(features)[0]
    torch.testing.assert_close(latents(extractor, features, features, stepper)[0], after)


@pytest.mark.parametrize("name", ["other activations", "a critic without layers"])
def test_networks_of_another_kind_have_no_snapshot(name):
    assert snapshot(extractor_of(*ARCHITECTURES[name])) is None
