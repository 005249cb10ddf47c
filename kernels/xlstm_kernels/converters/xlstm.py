"""The paper's stacks of the public ``xlstm`` package, and their states.

Names there mislead in two places: the sLSTM's ``fgate`` drives the input gate and its ``igate`` the forget gate, and a
norm's ``weight`` is what is added to 1. Its mLSTM scales keys where ours scales queries, which shows in a carried
state only.
Shapes: B batch, D embedding dim, E inner dim, K convolution kernel size, NH heads, DH head dim.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import xLSTMConfig
from ..pretrained import assemble
from ..stack import xLSTMBlockStack
from ..state import BlockState, StackState, map_state, mLSTMState, sLSTMState
from .shared import Sizes, Weights, check_blocks, check_settings, convert, convert_blocks, split_blocks


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
