"""Blocks behind large tensors are used again, and never twice at a time."""

import copy
import gc

import pytest
import torch
from torch import Tensor

from xlstm_kernels import buffers

SHAPE = (buffers.LARGE // 4 // 8, 8)


@pytest.fixture(autouse=True)
def _no_idle_blocks() -> None:
    buffers._idle.clear()


def large(numbers: int = SHAPE[0] * SHAPE[1]) -> Tensor:
    return buffers.empty((numbers,), like=torch.empty(0))


def test_a_block_that_a_tensor_leaves_behind_serves_the_next() -> None:
    first = buffers.empty(SHAPE, like=torch.empty(0))
    place = first.data_ptr()
    del first
    assert buffers.empty(SHAPE, like=torch.empty(0)).data_ptr() == place


def test_views_keep_their_block() -> None:
    view = large()[5:7]
    view.fill_(3.0)
    gc.collect()
    large().fill_(1.0)
    assert view.tolist() == [3.0, 3.0]


def test_tensors_that_live_at_once_share_nothing() -> None:
    first, second = large(), large()
    first.fill_(1.0)
    second.fill_(2.0)
    assert first.unique().tolist() == [1.0]


def test_a_block_much_too_large_is_left_for_others() -> None:
    place = large(3 * SHAPE[0] * SHAPE[1]).data_ptr()
    assert large().data_ptr() != place


def test_no_more_is_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "KEPT", 2 * buffers.LARGE)
    tensors = [large() for _ in range(4)]
    del tensors
    assert sum(block.nbytes for block in buffers._idle.values()) <= buffers.KEPT


def test_small_and_foreign_tensors_come_from_pytorch() -> None:
    assert buffers.empty((2, 3), like=torch.empty(0)).shape == (2, 3)
    assert buffers.empty(SHAPE, like=torch.empty(0, device="meta")).device.type == "meta"
    assert not buffers._idle


def test_such_a_tensor_can_be_copied_and_resized_like_any() -> None:
    tensor = large().zero_()
    assert torch.equal(copy.deepcopy(tensor), tensor)
    assert tensor.clone().data_ptr() != tensor.data_ptr()
