"""``xLSTMLarge`` of the public ``xlstm`` package, the architecture of xLSTM 7B, and its states.

Shapes: B batch, D embedding dim, NH heads, DK / DV width of queries and keys / of values.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..config import xLSTMConfig
from ..pretrained import assemble
from ..stack import xLSTMBlockStack
from ..state import BlockState, StackState, map_state, mLSTMState
from .shared import Sizes, Weights, check_blocks, check_settings, convert, convert_blocks, split_blocks


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
