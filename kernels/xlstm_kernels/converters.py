"""Weights and carried states of the public ``xlstm`` package as ours, told by names and shapes alone.

Names there mislead in two places: the sLSTM's ``fgate`` drives the input gate and its ``igate`` the forget gate, and a
norm's ``weight`` is what is added to 1. Its mLSTM scales keys where ours scales queries, which shows in a carried
state only. Nothing here imports that package.
Shapes: B batch, D embedding dim, E inner dim, K convolution kernel size, NH heads, DH head dim.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from .config import xLSTMConfig
from .pretrained import abridge, assemble
from .stack import xLSTMBlockStack
from .state import BlockState, StackState, map_state, mLSTMState, sLSTMState

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


def convert_convolution(taken: Weights) -> tuple[Weights, int]:
    """A block's convolution under our names, and its kernel size K; none and 0 where the block has none."""
    if "xlstm.conv1d.conv.weight" not in taken:
        return {}, 0
    weight, bias = taken.pop("xlstm.conv1d.conv.weight"), taken.pop("xlstm.conv1d.conv.bias")  # (D, 1, K), (D,)
    return {"conv.weight": weight[:, 0].T, "conv.bias": bias}, weight.shape[-1]


def convert_mlstm_block(taken: Weights) -> tuple[Weights, Sizes]:
    """One mLSTM block's weights under our names, and its sizes; what is used is popped."""
    up, q, gates = (taken.pop(f"xlstm.{name}.weight") for name in ("proj_up", "q_proj", "mlstm_cell.igate"))
    conv, kernel_size = convert_convolution(taken)
    sizes: Sizes = {
        "embedding_dim": up.shape[1],
        "projection_factor": up.shape[0] / 2 / up.shape[1],
        "conv_kernel_size": kernel_size,
        "qkv_block_size": q.shape[-1],
        "num_heads": gates.shape[0],
    }
    weights = {
        "norm.weight": 1 + taken.pop("xlstm_norm.weight"),
        "up.weight": up,
        **conv,
        "q.weight": q,
        "k.weight": taken.pop("xlstm.k_proj.weight"),
        "v.weight": taken.pop("xlstm.v_proj.weight"),
        "cell.gates.weight": torch.cat([gates, taken.pop("xlstm.mlstm_cell.fgate.weight")]),
        "cell.gates.bias": torch.cat([taken.pop(f"xlstm.mlstm_cell.{name}.bias") for name in ("igate", "fgate")]),
        "cell.norm.weight": 1 + taken.pop("xlstm.mlstm_cell.outnorm.weight"),
        "skip": taken.pop("xlstm.learnable_skip"),
        "down.weight": taken.pop("xlstm.proj_down.weight"),
    }
    return weights, sizes


def convert_slstm_block(taken: Weights) -> tuple[Weights, Sizes]:
    """One sLSTM block's weights under our names, and its sizes; what is used is popped."""
    # i, f, z, o by position: what is called fgate is added to the input gate, and the reverse.
    gates = torch.stack([taken.pop(f"xlstm.{name}.weight") for name in ("fgate", "igate", "zgate", "ogate")])
    _, NH, DH, _ = gates.shape
    conv, kernel_size = convert_convolution(taken)
    up = taken.pop("ffn.proj_up.weight")
    recurrent, bias = taken.pop("xlstm.slstm_cell._recurrent_kernel_"), taken.pop("xlstm.slstm_cell._bias_")
    if recurrent.shape[-1] == DH:  # backend "vanilla": [head; gate, out; in] and [gate, head, out]
        recurrent, bias = recurrent.view(NH, 4, DH, DH).transpose(0, 1), bias.view(4, NH, DH)
    else:  # backend "cuda": [head; in; gate, out] and [head, gate, out]
        recurrent, bias = recurrent.view(NH, DH, 4, DH).permute(2, 0, 3, 1), bias.view(NH, 4, DH).transpose(0, 1)
    sizes: Sizes = {
        "embedding_dim": NH * DH,
        "ffn_factor": up.shape[0] / 2 / up.shape[1],
        "conv_kernel_size": kernel_size,
        "num_heads": NH,
    }
    weights = {
        "norm.weight": 1 + taken.pop("xlstm_norm.weight"),
        **conv,
        "cell.input_weight": gates,
        "cell.recurrent_weight": recurrent,
        "cell.bias": bias,
        "cell.norm.weight": 1 + taken.pop("xlstm.group_norm.weight"),
        "ffn_norm.weight": 1 + taken.pop("ffn_norm.weight"),
        "ffn.up.weight": up,
        "ffn.down.weight": taken.pop("ffn.proj_down.weight"),
    }
    return weights, sizes


def check_blocks(state: Mapping[Any, Any], config: xLSTMConfig) -> None:
    """Raise ValueError unless the state has as many blocks as the stack."""
    if len(state) != config.num_blocks:
        raise ValueError(f"state must hold one entry for each of the {config.num_blocks} blocks, got {sorted(state)}")


def convert_7b_block(taken: Weights) -> tuple[Weights, Sizes]:
    """One xLSTM 7B block's weights under our names, and its sizes; what is used is popped."""
    layer, DV = "mlstm_layer.", taken["mlstm_layer.multihead_norm.weight"].shape[0]
    if "mlstm_layer.qkv_opreact.weight" in taken:  # weight_mode "fused"
        maps = taken.pop(layer + "qkv_opreact.weight")
        DK = (maps.shape[0] - 2 * DV) // 2
        q, k, v, o = maps.split([DK, DK, DV, DV])
        gates = [taken.pop(f"{layer}ifgate_preact.{kind}") for kind in ("weight", "bias")]
        up = taken.pop("ffn.proj_up_gate_z.weight")
    else:
        q, k, v, o = (taken.pop(f"{layer}{name}.weight") for name in ("q", "k", "v", "ogate_preact"))
        gates = [
            torch.cat([taken.pop(f"{layer}{gate}gate_preact.{kind}") for gate in "if"]) for kind in ("weight", "bias")
        ]
        up = torch.cat([taken.pop(f"ffn.{name}.weight") for name in ("proj_up_gate", "proj_up")])
    sizes: Sizes = {
        "embedding_dim": q.shape[1],
        "num_heads": gates[0].shape[0] // 2,
        "ffn_factor": up.shape[0] / 2 / q.shape[1],
    }
    if (2 * q.shape[0], v.shape[0]) != (q.shape[1], q.shape[1]):
        raise ValueError(
            f"queries of width {q.shape[0]} and values of width {v.shape[0]} in an embedding of width {q.shape[1]} "
            "cannot be converted: only qk_dim_factor 0.5 with v_dim_factor 1"
        )
    weights = {
        "norm.weight": taken.pop("norm_mlstm.weight"),
        "q.weight": q,
        "k.weight": k,
        "v.weight": v,
        "o.weight": o,
        "cell.gates.weight": gates[0],
        "cell.gates.bias": gates[1],
        "cell.norm.weight": taken.pop(layer + "multihead_norm.weight"),
        "down.weight": taken.pop(layer + "out_proj.weight"),
        "ffn_norm.weight": taken.pop("norm_ffn.weight"),
        "ffn.up.weight": up,
        "ffn.down.weight": taken.pop("ffn.proj_down.weight"),
    }
    return weights, sizes


def convert_block_state(state: Mapping[str, Any], config: xLSTMConfig) -> BlockState:
    """One block's memory and convolution window."""
    if "mlstm_state" in state:
        c, n, m = state["mlstm_state"]
        root = c.shape[-2] ** 0.5  # keys are scaled by DK^-1/2 there, queries here
        return BlockState(
            convert_window(state["conv_state"], config), mLSTMState(root * c, root * n.squeeze(-1), m.flatten(1))
        )
    cell = sLSTMState(*state["slstm_state"].unflatten(-1, (config.num_heads, -1)))  # from (4, B, NH * DH): h, c, n, m
    if state["conv_state"] is None:
        return BlockState(cell.h.new_zeros(len(cell.h), 0, config.embedding_dim), cell)
    return BlockState(convert_window(state["conv_state"], config), cell)


def convert_window(window: Tensor | tuple[Tensor], config: xLSTMConfig) -> Tensor:
    """The last K - 1 inputs, (B, K - 1, D): a step there returns a tuple of the last K, a sequence the last K - 1."""
    inputs = window[0] if isinstance(window, tuple) else window
    return inputs[:, inputs.shape[1] - (config.conv_kernel_size - 1) :]


def from_xlstm(source: nn.Module | Mapping[str, Tensor]) -> xLSTMBlockStack:
    """An ``xLSTMBlockStack`` of the ``xlstm`` package as ours, with equal outputs.

    Sizes are read from the weights. An ``xLSTMLMModel`` gives its stack; embedding and head stay with the caller.

    Args:
        source: the module, or its ``state_dict()``; of a state dict, the gated FFN's activation is taken to be GELU.

    Raises:
        ValueError: weights are missing or have no counterpart here, blocks differ in what one config sets for all, or
            the module computes something else (another FFN activation, a plain LSTM cell).

    Source: Beck et al. 2024 (arXiv 2405.04517) as published in ``xlstm`` 2.0.

    >>> stack = from_xlstm(torch.load("model.pt", weights_only=True))
    """
    check_settings(source, {"act_fn": "gelu", "function": "slstm"})
    blocks, beside = split_blocks(source, prefix="xlstm_block_stack.")
    slstm_at = tuple(index for index, block in enumerate(blocks) if "xlstm.slstm_cell._bias_" in block)
    converters = [convert_slstm_block if index in slstm_at else convert_mlstm_block for index in range(len(blocks))]
    weights, sizes = convert_blocks(blocks, converters)
    weights |= convert("the stack", beside, lambda taken: {"norm.weight": 1 + taken.pop("post_blocks_norm.weight")})
    config = xLSTMConfig(num_blocks=len(blocks), slstm_at=slstm_at, ffn_round_to=1, **sizes)  # type: ignore[arg-type]
    return assemble(xLSTMBlockStack, config, weights, origin="the converted state dict")


def state_from_xlstm(state: Mapping[str, Mapping[str, Any]], config: xLSTMConfig) -> StackState:
    """What ``xLSTMBlockStack.step`` of the ``xlstm`` package returns as state, for the converted stack to go on from.

    Args:
        state: ``{"block_0": {"mlstm_state" or "slstm_state": ..., "conv_state": ...}, ...}``.
        config: of the converted stack.

    >>> y, theirs = original.step(x)
    >>> stack = from_xlstm(original)
    >>> y_next, state = stack(x_next, state_from_xlstm(theirs, stack.config))
    """
    check_blocks(state, config)
    blocks = tuple(convert_block_state(state[f"block_{index}"], config) for index in range(config.num_blocks))
    return map_state(torch.clone, blocks)  # the public stack goes on in place


def from_xlstm_large(
    source: nn.Module | Mapping[str, Tensor], *, gate_soft_cap: float | None = None
) -> xLSTMBlockStack:
    """An ``xLSTMLarge`` (the architecture of xLSTM 7B) of the ``xlstm`` package as our stack, with equal outputs.

    Sizes are read from the weights, fused or single. Embedding, head and the cap on its logits stay with the caller.

    Args:
        source: the ``xLSTMLarge``, its ``backbone``, or the ``state_dict()`` of either.
        gate_soft_cap: bound on the gates' pre-activations, which weights do not show; None is the module's, or the
            15 that the models were published with.

    Raises:
        ValueError: weights are missing or have no counterpart here, or widths or epsilons are not the published ones.

    Source: Beck et al. 2025 (xLSTM 7B, arXiv 2503.13427) as published in ``xlstm`` 2.0.

    >>> model = xLSTMLarge(config)
    >>> y, state = from_xlstm_large(model)(model.embedding(tokens))
    >>> logits = soft_cap(model.lm_head(y), model.config.output_logit_soft_cap)
    """
    check_settings(source, {"eps": 1e-6, "norm_eps": 1e-6})
    if gate_soft_cap is None:
        gate_soft_cap = getattr(getattr(source, "config", None), "gate_soft_cap", 15.0)
    blocks, beside = split_blocks(source, prefix="backbone.")
    weights, sizes = convert_blocks(blocks, [convert_7b_block] * len(blocks))
    weights |= convert("the stack", beside, lambda taken: {"norm.weight": taken.pop("out_norm.weight").clone()})
    config = xLSTMConfig(
        num_blocks=len(blocks),
        mlstm_block="7b",
        ffn_round_to=1,
        gate_soft_cap=gate_soft_cap,
        **sizes,  # type: ignore[arg-type]
    )
    return assemble(xLSTMBlockStack, config, weights, origin="the converted state dict")


def state_from_xlstm_large(state: Mapping[int, tuple[Tensor, Tensor, Tensor]], config: xLSTMConfig) -> StackState:
    """What ``xLSTMLarge`` returns as state with ``return_last_states``, for the converted stack to go on from.

    Args:
        state: ``{0: (c, n, m), ...}``; queries are scaled there as here.
        config: of the converted stack.
    """
    check_blocks(state, config)
    cells = [mLSTMState(c, n, m.squeeze(-1)) for c, n, m in (state[index] for index in range(config.num_blocks))]
    blocks = tuple(BlockState(cell.c.new_zeros(len(cell.c), 0, config.embedding_dim), cell) for cell in cells)
    return map_state(torch.clone, blocks)  # the public stack goes on in place
