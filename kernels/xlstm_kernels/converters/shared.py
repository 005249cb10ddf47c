"""What both converters share: weights under our names, block by block, with nothing left over; whether a state fits."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..config import xLSTMConfig
from ..pretrained import abridge

Weights: TypeAlias = dict[str, Tensor]
Sizes: TypeAlias = dict[str, int | float]
BlockConverter: TypeAlias = Callable[[Weights], tuple[Weights, Sizes]]
T = TypeVar("T")


def check_settings(source: nn.Module | Mapping[str, Tensor], computed: Mapping[str, Any]) -> None:
    """Raise ValueError where a module's configs, of what weights do not show, differ from what is computed here."""
    for module in source.modules() if isinstance(source, nn.Module) else ():
        for name, supported in computed.items():
            setting = getattr(getattr(module, "config", None), name, supported)
            if setting != supported:
                raise ValueError(f"{type(module).__name__} has {name} {setting!r}; only {supported!r} can be converted")


def split_blocks(source: nn.Module | Mapping[str, Tensor], *, prefix: str) -> tuple[list[Weights], Weights]:
    """The weights of each block, and those beside the blocks; of names with ``prefix`` alone where there are any."""
    weights = source.state_dict() if isinstance(source, nn.Module) else source
    if any(name.startswith(prefix) for name in weights):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    blocks: dict[int, Weights] = {}
    beside: Weights = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            blocks.setdefault(int(match[1]), {})[match[2]] = tensor
        else:
            beside[name] = tensor
    if sorted(blocks) != list(range(len(blocks))) or not blocks:
        raise ValueError(
            f"expected weights of blocks 0, 1, ..., found blocks {sorted(blocks)}; is this a block stack's?"
        )
    return [blocks[index] for index in range(len(blocks))], beside


def convert(place: str, weights: Weights, converter: Callable[[Weights], T]) -> T:
    """What ``converter`` makes of the weights, all of which it must pop.

    Raises:
        ValueError: a weight is missing or left over.
    """
    taken = dict(weights)
    try:
        result = converter(taken)
    except KeyError as error:
        raise ValueError(
            f"{place} lacks {error.args[0]!r}: another architecture, or switched off in its config"
        ) from None
    if taken:
        raise ValueError(f"{place} has weights without a counterpart here: {abridge(sorted(taken))}")
    return result


def convert_blocks(blocks: list[Weights], converters: Sequence[BlockConverter]) -> tuple[Weights, Sizes]:
    """The weights of all blocks under our names, and the sizes that they share."""
    weights: Weights = {}
    sizes: Sizes = {}
    for index, (block, converter) in enumerate(zip(blocks, converters, strict=True)):
        converted, own = convert(f"block {index}", block, converter)
        for name, tensor in converted.items():  # copied: to train the converted stack must not train the original
            weights[f"blocks.{index}.{name}"] = tensor.detach().clone(memory_format=torch.contiguous_format)
        if conflict := [name for name in own if own[name] != sizes.get(name, own[name])]:
            name = conflict[0]
            raise ValueError(
                f"{name} is {own[name]} in block {index}, {sizes[name]} before it; one config sets it for all"
            )
        sizes |= own
    return weights, sizes


def check_blocks(state: Mapping[Any, Any], config: xLSTMConfig) -> None:
    """Raise ValueError unless the state has as many blocks as the stack."""
    if len(state) != config.num_blocks:
        raise ValueError(f"state must hold one entry for each of the {config.num_blocks} blocks, got {sorted(state)}")
