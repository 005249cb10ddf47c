"""The memory module and its options."""

import numpy as np
import pytest
import torch

from xlstm_kernels import map_state, pack_state
from xlstm_rl.memory import Memory, MemoryConfig

OPTIONS = {"embedding_dim": 8, "num_blocks": 2, "num_heads": 2, "slstm_at": (1,)}


@pytest.fixture
def memory():
    torch.manual_seed(0)
    return Memory(3, MemoryConfig.from_options(OPTIONS))


def test_a_state_survives_the_way_through_numpy(memory):
    _, state = memory(torch.randn(4, 5, 3), memory.initial_state(4))
    arrays = memory.to_numpy(state)
    assert [array.dtype for array in arrays] == [np.float32]
    back = memory.from_numpy(arrays, 4)
    map_state(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0) or a, back, state)


def test_no_state_means_a_fresh_memory(memory):
    fresh = pack_state(memory.initial_state(2))
    assert torch.equal(pack_state(memory.from_numpy(None, 2)), fresh)


def test_a_state_of_another_batch_size_is_refused(memory):
    arrays = memory.to_numpy(memory.initial_state(3))
    with pytest.raises(ValueError, match="but there are 2 observations; pass the state that predict returned"):
        memory.from_numpy(arrays, 2)


def test_a_state_of_another_memory_is_refused(memory):
    other = Memory(3, MemoryConfig.from_options({**OPTIONS, "embedding_dim": 16}))
    with pytest.raises(ValueError, match="packed state"):
        memory.from_numpy(other.to_numpy(other.initial_state(2)), 2)


def test_options_reach_the_stack():
    config = MemoryConfig.from_options(
        {"cell": "xlstm", "skip": False, "num_blocks": 3, "slstm_at": [0], "conv_kernel_size": 2}
    )
    assert (config.skip, config.stack.num_blocks, config.stack.conv_kernel_size) == (False, 3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 64}, r"unknown memory option 'hidden_size'; use one of \['cell', "),
        ({"cell": "elman"}, "unknown memory cell 'elman'; use 'xlstm'"),
        ({"dropout": 0.1}, r"memory dropout must be 0, got 0.1"),
        ({"num_blocks": 0}, "num_blocks must be >= 1, got 0"),
        ({"slstm_at": (5,)}, r"slstm_at names blocks \[5\]"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig.from_options(options)


def test_heads_must_divide_the_embedding():
    with pytest.raises(ValueError, match="num_heads must divide embedding_dim 10, got 4"):
        Memory(3, MemoryConfig.from_options({"embedding_dim": 10, "num_blocks": 1, "slstm_at": (0,)}))
