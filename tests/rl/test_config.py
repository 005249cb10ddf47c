"""The options of the memory."""

import pytest

from xlstm_rl.config import MemoryConfig, check_contrib_options


def test_options_reach_the_stack():
    config = MemoryConfig.from_options(
        {"cell": "xlstm", "skip": False, "num_blocks": 3, "slstm_at": [0], "conv_kernel_size": 2}
    )
    assert (config.skip, config.stack.num_blocks, config.stack.conv_kernel_size) == (False, 3, 2)


@pytest.mark.parametrize(("cell", "blocks"), [("mlstm", set()), ("slstm", {0, 1})])
def test_a_cell_of_one_kind_is_a_stack_of_it(cell, blocks):
    assert MemoryConfig.from_options({"cell": cell, "num_blocks": 2}).stack.slstm_blocks == blocks


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_torchs_cells_take_the_same_words_for_their_sizes(cell):
    config = MemoryConfig.from_options({"cell": cell, "embedding_dim": 32, "num_blocks": 2})
    assert (config.embedding_dim, config.num_blocks, config.stack) == (32, 2, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 64}, r"unknown memory option 'hidden_size' for cell 'xlstm'; use one of \['cell', "),
        ({"cell": "lstm", "num_heads": 2}, r"'num_heads' for cell 'lstm'; use one of \['cell', 'critic', "),
        ({"cell": "slstm", "slstm_at": (0,)}, "unknown memory option 'slstm_at' for cell 'slstm'"),
        ({"cell": "elman"}, r"unknown memory cell 'elman'; use one of \['xlstm', 'mlstm', "),
        ({"critic": "both"}, r"unknown memory critic 'both'; use one of \['shared', "),
        ({"dropout": 0.1}, r"memory dropout must be 0, got 0.1"),
        ({"scale": 0.0}, "memory scale must be a number > 0 and finite, got 0.0"),
        ({"scale": float("inf")}, "memory scale must be a number > 0 and finite, got inf"),
        ({"cell": "gru", "scale": 1.0}, "unknown memory option 'scale' for cell 'gru'"),
        ({"num_blocks": 0}, "num_blocks must be an integer >= 1, got 0"),
        ({"cell": "gru", "embedding_dim": 0}, "embedding_dim must be an integer >= 1, got 0"),
        ({"embedding_dim": "64"}, "embedding_dim must be an integer >= 1, got '64'"),
        ({"scale": "small"}, "memory scale must be a number > 0 and finite, got 'small'"),
        ({"skip": "no"}, "memory skip must be True or False, got 'no'"),
        ({"reset_on_done": 0}, "memory reset_on_done must be True or False, got 0"),
        ({"slstm_at": (5,)}, r"slstm_at names blocks \[5\]"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig.from_options(options)


def test_options_that_are_no_dictionary_are_refused():
    with pytest.raises(TypeError, match=r"memory must be a dictionary of options, got 64; use memory=dict\("):
        MemoryConfig.from_options(64)


def test_options_of_sb3_contribs_policies_are_translated():
    with pytest.raises(TypeError, match=r"lstm_hidden_size is RecurrentPPO's; use memory=dict\(.*embedding_dim=64"):
        check_contrib_options({"lstm_hidden_size": 32})
    check_contrib_options({"net_arch": [8]})
