"""SB3's networks of actor and critic, in one call where they are what SB3 makes by default.

Shapes: M rows, F features.
"""

from collections.abc import Sequence
from typing import cast

import torch as th
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from xlstm_kernels import TanhStepper, tanh_mlps


def actor_latent(extractor: MlpExtractor, features: Tensor) -> Tensor:
    """``extractor.forward_actor`` of (M, F)."""
    layers = _tanh_layers(extractor.policy_net)
    return extractor.forward_actor(features) if layers is None else tanh_mlps(features, [layers])[0]


def critic_latent(extractor: MlpExtractor, features: Tensor) -> Tensor:
    """``extractor.forward_critic`` of (M, F)."""
    layers = _tanh_layers(extractor.value_net)
    return extractor.forward_critic(features) if layers is None else tanh_mlps(features, [layers])[0]


def latents(extractor: MlpExtractor, pi: Tensor, vf: Tensor, stepper: TanhStepper | None = None) -> Sequence[Tensor]:
    """Both, of (M, F) each: in one call where they read the same, without gradients by the ``stepper``'s snapshot."""
    if pi is vf:
        if stepper is not None and not th.is_grad_enabled():
            return stepper(pi)
        networks = [_tanh_layers(extractor.policy_net), _tanh_layers(extractor.value_net)]
        if None not in networks:
            return tanh_mlps(pi, cast("list[list[Tensor]]", networks))
    return actor_latent(extractor, pi), critic_latent(extractor, vf)


def snapshot(extractor: MlpExtractor) -> TanhStepper | None:
    """Of both networks as they are now, for ``latents``; None where they are of another kind."""
    networks = [_tanh_layers(extractor.policy_net), _tanh_layers(extractor.value_net)]
    return None if None in networks else TanhStepper(cast("list[list[Tensor]]", networks))


def _tanh_layers(network: nn.Module) -> list[Tensor] | None:
    """Weights and biases in turn, or None for another kind of network, or one that somebody listens to."""
    modules = list(network.children())
    linear, activations = modules[::2], modules[1::2]
    if type(network) is not nn.Sequential or len(linear) != len(activations) or not linear:
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in (network, *modules)):
        return None
    weights: list[Tensor] = []
    for layer, activation in zip(linear, activations, strict=True):
        if type(layer) is not nn.Linear or type(activation) is not nn.Tanh or layer.bias is None:
            return None
        weights += [layer.weight, layer.bias]
    return weights
