"""The config of a stack: what its fields build, how it travels, and what it refuses."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from tests.kernels.stacks import STACKS, small_config
from xlstm_kernels import TIREX, mLSTMBlock, sLSTMBlock, xLSTM7BBlock, xLSTMBlockStack, xLSTMConfig
from xlstm_kernels.layers import RMSNorm


def test_blocks_named_from_the_end_are_counted_from_the_front() -> None:
    assert xLSTMConfig(embedding_dim=8, num_blocks=3, slstm_at=(-1, 0)).slstm_blocks == {0, 2}


@pytest.mark.parametrize(
    ("ratio", "num_blocks", "expected"),
    [
        ("7:1", 8, (7,)),
        ("7:1", 48, (7, 15, 23, 31, 39, 47)),
        ("1:1", 4, (1, 3)),
        ("2:2", 4, (2, 3)),
        ("0:1", 3, (0, 1, 2)),
        ("1:0", 3, ()),
    ],
)
def test_a_ratio_makes_the_last_blocks_of_each_group_slstm(
    ratio: str, num_blocks: int, expected: tuple[int, ...]
) -> None:
    assert xLSTMConfig(embedding_dim=8, num_blocks=num_blocks, slstm_at=ratio).slstm_at == expected


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
def test_a_config_survives_json(options: dict) -> None:
    config = small_config(**options)
    again = xLSTMConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be >= 1, got 0"),
        ({"num_blocks": 0}, "num_blocks must be >= 1, got 0"),
        ({"num_heads": 2.0}, "num_heads must be an integer, got 2.0"),
        ({"conv_kernel_size": -1}, "conv_kernel_size must be >= 0, got -1"),
        ({"slstm_at": (2,)}, r"slstm_at names blocks \[2\], but num_blocks is 2"),
        ({"slstm_at": (True,)}, r"slstm_at must hold integers, .* got \(True,\)"),
        ({"slstm_at": "all"}, "slstm_at as a ratio must read \"a:b\", .* got 'all'"),
        ({"slstm_at": 1}, "slstm_at must be a tuple of indices, .* got 1"),
        ({"slstm_at": "0:0"}, "slstm_at as a ratio must read \"a:b\", .* got '0:0'"),
        ({"slstm_at": "7:1"}, r'slstm_at="7:1" needs num_blocks to be a multiple of 8, got 2'),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"dropout": None}, r"dropout must be a number in \[0, 1\), got None"),
        ({"projection_factor": float("inf")}, "projection_factor must be > 0 and finite, got inf"),
        ({"ffn_factor": 0.0}, "ffn_factor must be > 0 and finite, got 0.0"),
        ({"projection_factor": None}, "projection_factor must be > 0 and finite, got None"),
        ({"gate_soft_cap": -15.0}, "gate_soft_cap must be > 0 and finite, got -15.0"),
        ({"recurrent_gradient_clip": "1"}, "recurrent_gradient_clip must be > 0 and finite, got '1'"),
        ({"mlstm_block": "13b"}, r"mlstm_block must be one of \('paper', '7b'\), got '13b'"),
        ({"slstm_block": None}, r"slstm_block must be one of \('paper', 'tirex'\), got None"),
        ({"norm": "batch"}, r"norm must be one of \('layer', 'rms'\), got 'batch'"),
        ({"input_gate": "tanh"}, r"input_gate must be one of \('exponential', 'sigmoid'\), got 'tanh'"),
        ({"forget_gate": "tanh"}, r"forget_gate must be one of \('sigmoid', 'exponential'\), got 'tanh'"),
        ({"input_gate_init": "open"}, r"input_gate_init must be one of \('normal', 'closed'\), got 'open'"),
        ({"recurrent_init": "ones"}, r"recurrent_init must be one of \('zeros', 'uniform'\), got 'ones'"),
        ({"learnable_skip": "false"}, "learnable_skip must be True or False, got 'false'"),
    ],
)
def test_a_field_out_of_range_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        xLSTMConfig(**{"embedding_dim": 8, "num_blocks": 2, **changes})


def test_heads_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads must divide the inner width 20, got 3"):
        xLSTMBlockStack(xLSTMConfig(embedding_dim=10, num_blocks=1, num_heads=3))
    with pytest.raises(ValueError, match="num_heads must divide embedding_dim 10, got 3"):
        xLSTMBlockStack(xLSTMConfig(embedding_dim=10, num_blocks=1, num_heads=3, slstm_at=(0,)))
    with pytest.raises(ValueError, match="num_heads must divide the width of queries and keys 5, got 2"):
        xLSTMBlockStack(xLSTMConfig(embedding_dim=10, num_blocks=1, num_heads=2, mlstm_block="7b"))


def test_the_final_norm_is_that_of_the_last_block() -> None:
    seven_b_last = {"slstm_at": (0,), "mlstm_block": "7b"}
    assert isinstance(xLSTMBlockStack(small_config(**seven_b_last)).norm, RMSNorm)
    assert isinstance(xLSTMBlockStack(small_config(slstm_at=(1,), mlstm_block="7b")).norm, nn.LayerNorm)
    assert isinstance(xLSTMBlockStack(small_config(**seven_b_last, norm="layer")).norm, nn.LayerNorm)
    assert isinstance(xLSTMBlockStack(small_config(norm="rms")).norm, RMSNorm)


# Names of parameters are what checkpoints are read by.
MLSTM_PARAMETERS = {
    "norm.weight": (16,),
    "up.weight": (64, 16),
    "conv.weight": (4, 32),
    "conv.bias": (32,),
    "q.weight": (8, 4, 4),
    "k.weight": (8, 4, 4),
    "v.weight": (8, 4, 4),
    "cell.gates.weight": (4, 96),
    "cell.gates.bias": (4,),
    "cell.norm.weight": (32,),
    "skip": (32,),
    "down.weight": (16, 32),
}
SLSTM_PARAMETERS = {
    "norm.weight": (16,),
    "conv.weight": (4, 16),
    "conv.bias": (16,),
    "cell.input_weight": (4, 2, 8, 8),
    "cell.recurrent_weight": (4, 2, 8, 8),
    "cell.bias": (4, 2, 8),
    "cell.norm.weight": (16,),
    "ffn_norm.weight": (16,),
    "ffn.up.weight": (48, 16),
    "ffn.down.weight": (16, 24),
}
XLSTM_7B_PARAMETERS = {
    "norm.weight": (16,),
    "q.weight": (8, 16),
    "k.weight": (8, 16),
    "v.weight": (16, 16),
    "o.weight": (16, 16),
    "cell.gates.weight": (4, 16),
    "cell.gates.bias": (4,),
    "cell.norm.weight": (16,),
    "down.weight": (16, 16),
    "ffn_norm.weight": (16,),
    "ffn.up.weight": (96, 16),  # 8/3 * 16 = 43 rounded up to 48, twice
    "ffn.down.weight": (16, 48),
}
WITHOUT_CONVOLUTION = {name: shape for name, shape in SLSTM_PARAMETERS.items() if not name.startswith("conv")}
TIREX_PARAMETERS = {**WITHOUT_CONVOLUTION, "ffn.up.weight": (96, 16), "ffn.down.weight": (16, 48)}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (mLSTMBlock(16, 2), MLSTM_PARAMETERS),
        (sLSTMBlock(16, 2), SLSTM_PARAMETERS),
        (xLSTM7BBlock(16, 2), XLSTM_7B_PARAMETERS),
        (sLSTMBlock(16, 2, **TIREX), TIREX_PARAMETERS),
    ],
    ids=["mLSTM", "sLSTM", "7b", "TiRex"],
)
def test_each_kind_of_block_has_its_published_parameters(block: nn.Module, expected: dict) -> None:
    assert {name: tuple(parameter.shape) for name, parameter in block.named_parameters()} == expected


@pytest.mark.parametrize(("embedding_dim", "expected"), [(512, 1408), (4096, 10944)], ids=["TiRex", "xLSTM 7B"])
def test_the_ffn_of_the_published_models_has_their_width(embedding_dim: int, expected: int) -> None:
    with torch.device("meta"):
        block = sLSTMBlock(embedding_dim, 4, **TIREX, ffn_round_to=64)
    assert block.ffn is not None
    assert block.ffn.down.weight.shape == (embedding_dim, expected)


def test_the_start_of_each_kind_of_block_is_as_published() -> None:
    torch.manual_seed(0)
    paper, seven_b = mLSTMBlock(64, 8).cell, xLSTM7BBlock(64, 8).cell
    assert 0 < paper.gates.bias[:8].abs().max() < 0.5
    assert (seven_b.gates.bias[:8] == -10).all()
    assert (paper.norm.eps, seven_b.norm.eps) == (1e-5, 1e-6)
    assert mLSTMBlock(64, 8, input_gate_init="closed").cell.norm.eps == 1e-6
    assert not sLSTMBlock(64, 4).cell.recurrent_weight.any()
    spread = sLSTMBlock(64, 4, recurrent_init="uniform").cell.recurrent_weight
    assert spread.abs().max().item() == pytest.approx(1 / math.sqrt(16), rel=0.01)
