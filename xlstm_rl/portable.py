"""A policy's acting part as plain arrays and a description of them, for ``NumpyActor``."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from torch import nn

from xlstm_kernels import mLSTMBlock, sLSTMBlock, xLSTMConfig
from xlstm_rl.distributions import mask_parts
from xlstm_rl.memory import Memory, StackMemory, TorchMemory
from xlstm_rl.mlp_policy import MlpPolicy
from xlstm_rl.normalization import FeatureNorm

Spec = dict[str, Any]
Arrays = dict[str, np.ndarray]

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.ELU: "elu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
}


class NotPortableError(ValueError):
    """A part of the policy that has no form in NumPy."""


def portable_policy(policy: MlpPolicy) -> tuple[Spec, Arrays]:
    """What acts deterministically: description and weights, by the names that ``NumpyActor`` reads.

    Raises:
        NotPortableError: a part that NumPy has no form for, by name.
    """
    memory = policy.memory.actor
    memory_spec, arrays = portable_memory(memory)
    layers, head_arrays = _layers(policy)
    action, bounds = portable_action(policy)
    spec = {
        "observation": _observation(policy),
        "memory": memory_spec,
        "skip": policy.memory.skip,
        "reset_on_done": policy.reset_on_done,
        "layers": layers,
        "action": action,
    }
    named = {f"memory.{name}": array for name, array in arrays.items()}
    fresh = memory.initial_state(1).cpu().numpy()
    return spec, {**named, **_norm(policy), **head_arrays, **bounds, "state": fresh}


def portable_memory(memory: Memory) -> tuple[Spec, Arrays]:
    """A memory's description and weights."""
    arrays = {name: _array(weight) for name, weight in memory.state_dict().items()}
    if isinstance(memory, TorchMemory):
        layers, D = memory.rnn.num_layers, memory.output_dim
        cell = "lstm" if isinstance(memory.rnn, nn.LSTM) else "gru"
        shapes = [[layers, D]] * (2 if cell == "lstm" else 1)
        return {"cell": cell, "layers": layers, "state_shapes": shapes}, arrays
    assert isinstance(memory, StackMemory)
    stack = memory.stack
    _check_stack(stack.config)
    blocks, shapes = [], []
    for block, state in zip(stack.blocks, stack.initial_state(1), strict=True):
        assert isinstance(block, mLSTMBlock | sLSTMBlock)
        blocks.append(_block(block, stack.config))
        shapes += [list(leaf.shape[1:]) for leaf in (state.conv, *state.cell)]
    norm = stack.config.final_norm
    return {
        "cell": "stack",
        "blocks": blocks,
        "norm": norm,
        "norm_eps": stack.norm.eps,
        "state_shapes": shapes,
    }, arrays


def _check_stack(config: xLSTMConfig) -> None:
    papers = {"mlstm_block": "paper", "input_gate": "exponential", "normalize": True, "gate_soft_cap": None}
    if len(config.slstm_blocks) == config.num_blocks:
        return  # these options are the mLSTM's
    for name, value in papers.items():
        if getattr(config, name) != value:
            raise NotPortableError(f"NumPy has no form of a memory with {name}={getattr(config, name)!r}")


def _block(block: mLSTMBlock | sLSTMBlock, config: xLSTMConfig) -> Spec:
    shared = {
        "norm": "layer" if isinstance(block.norm, nn.LayerNorm) else "rms",
        "norm_eps": block.norm.eps,
        "head_norm_eps": block.cell.norm.eps,
        "conv": block.conv is not None,
    }
    if isinstance(block, mLSTMBlock):
        return {**shared, "block": "mlstm", "skip": block.skip is not None}
    assert block.ffn is not None
    forget = config.forget_gate == "exponential"
    return {**shared, "block": "slstm", "ffn": block.ffn.activation, "exponential_forget": forget}


def _layers(policy: MlpPolicy) -> tuple[list[tuple[str, str | None]], Arrays]:
    """The actor's network and the action network: each layer's name and activation, and their weights."""
    layers: list[tuple[str, str | None]] = []
    arrays: Arrays = {}
    for module in [*policy.mlp_extractor.policy_net, policy.action_net]:
        if isinstance(module, nn.Linear):
            name = f"layer{len(layers)}"
            layers.append((name, None))
            arrays |= {f"{name}.weight": _array(module.weight), f"{name}.bias": _array(module.bias)}
        elif type(module) in ACTIVATIONS and layers:
            layers[-1] = (layers[-1][0], ACTIVATIONS[type(module)])
        else:
            raise NotPortableError(
                f"NumPy has no form of the actor's layer {module}; it knows {sorted(ACTIVATIONS.values())}"
            )
    return layers, arrays


def _norm(policy: MlpPolicy) -> Arrays:
    norm = policy.feature_norm
    if not isinstance(norm, FeatureNorm):
        return {}
    return {"shift": _array(norm.shift), "scale": _array(norm.scale)}


def _observation(policy: MlpPolicy) -> list[Spec]:
    space, extractor = policy.observation_space, policy.features_extractor
    if type(extractor) not in (FlattenExtractor, CombinedExtractor):
        raise NotPortableError(f"NumPy has no form of the features extractor {type(extractor).__name__}")
    if isinstance(space, spaces.Dict):
        return [_part(key, part, policy.normalize_images) for key, part in space.spaces.items()]
    return [_part(None, space, policy.normalize_images)]


def _part(key: str | None, space: spaces.Space, normalize_images: bool) -> Spec:
    if isinstance(space, spaces.Discrete):
        return {"key": key, "kind": "choice", "shape": [], "sizes": [int(space.n)]}
    if isinstance(space, spaces.MultiDiscrete):
        return {"key": key, "kind": "choice", "shape": list(space.shape), "sizes": space.nvec.ravel().tolist()}
    if is_image_space(space, normalized_image=not normalize_images):
        raise NotPortableError(f"NumPy has no form of the image {space}")
    assert space.shape is not None
    return {"key": key, "kind": "box", "shape": list(space.shape), "size": int(np.prod(space.shape))}


def portable_action(policy: MlpPolicy) -> tuple[Spec, Arrays]:
    """How the action is chosen, and its bounds where it has some."""
    space = policy.action_space
    kinds = {spaces.Discrete: "discrete", spaces.MultiDiscrete: "multidiscrete", spaces.MultiBinary: "multibinary"}
    for kind, name in kinds.items():
        if isinstance(space, kind):
            return {"kind": name, "sizes": mask_parts(space)}, {}
    assert isinstance(space, spaces.Box)
    squashed = isinstance(policy.action_dist, StateDependentNoiseDistribution) and policy.squash_output
    bounds = {"low": space.low.ravel().astype(np.float32), "high": space.high.ravel().astype(np.float32)}
    return {"kind": "squashed" if squashed else "box", "shape": list(space.shape)}, bounds


def _array(weight: th.Tensor) -> np.ndarray:
    return weight.detach().cpu().numpy().copy()
