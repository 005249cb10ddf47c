"""States as values: every tree function against what it says of single tensors."""

import copy
import pickle
from pathlib import Path

import pytest
import torch

from xlstm_kernels import (
    LSTMState,
    StackState,
    concat_states,
    detach_state,
    initial_lstm_state,
    map_state,
    move_state,
    pack_state,
    select_state,
    unpack_state,
    where_state,
    xLSTMBlockStack,
    xLSTMConfig,
)
from xlstm_kernels.state import state_leaves


@pytest.fixture
def stack() -> xLSTMBlockStack:
    torch.manual_seed(0)
    return xLSTMBlockStack(xLSTMConfig(embedding_dim=8, num_blocks=2, num_heads=2, slstm_at=(1,)))


def state_after(stack: xLSTMBlockStack, batch_size: int, *, seed: int = 1) -> StackState:
    x = torch.randn(batch_size, 5, 8, generator=torch.Generator().manual_seed(seed))
    return stack(x)[1]


def assert_equal(a: StackState, b: StackState) -> None:
    for x, y in zip(state_leaves(a), state_leaves(b), strict=True):
        assert torch.equal(x, y)


def test_packing_and_unpacking_returns_the_same_tree(stack: xLSTMBlockStack) -> None:
    for state in (state_after(stack, 3), stack.initial_state(3)):
        packed = pack_state(state)
        unpacked = unpack_state(packed, like=stack.initial_state(1))
        assert packed.dtype == torch.float32
        assert packed.shape == (3, sum(leaf[0].numel() for leaf in state_leaves(state)))
        assert type(unpacked[0].cell) is type(state[0].cell)
        assert_equal(unpacked, state)


def test_a_packed_state_of_another_width_is_named(stack: xLSTMBlockStack) -> None:
    packed = pack_state(state_after(stack, 3))
    with pytest.raises(ValueError, match=rf"\(B, {packed.shape[1]}\), got \(3, {packed.shape[1] - 1}\)"):
        unpack_state(packed[:, 1:], like=stack.initial_state(1))


@pytest.mark.parametrize(
    "rows",
    [slice(1, 3), [2, 0], torch.tensor([3]), torch.tensor([True, False, True, False])],
    ids=["slice", "list", "indices", "mask"],
)
def test_selecting_rows_equals_running_these_rows(stack: xLSTMBlockStack, rows: object) -> None:
    x = torch.randn(4, 5, 8)
    _, state = stack(x)
    _, expected = stack(x[rows])
    for a, b in zip(state_leaves(select_state(state, rows)), state_leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


def test_a_selected_state_shares_no_memory_with_its_source(stack: xLSTMBlockStack) -> None:
    state = detach_state(state_after(stack, 3))
    selected = select_state(state, slice(0, 2))
    for leaf in state_leaves(state):
        leaf.zero_()
    assert all(leaf.abs().sum() > 0 for leaf in state_leaves(selected))


def test_where_takes_each_row_from_the_tree_that_the_mask_names(stack: xLSTMBlockStack) -> None:
    state, fresh = state_after(stack, 3), stack.initial_state(3)
    mixed = where_state(torch.tensor([True, False, True]), state, fresh)
    assert_equal(select_state(mixed, [0, 2]), select_state(state, [0, 2]))
    assert_equal(select_state(mixed, [1]), select_state(fresh, [1]))


def test_a_mask_that_is_not_one_flag_a_row_is_named(stack: xLSTMBlockStack) -> None:
    state = stack.initial_state(3)
    with pytest.raises(ValueError, match=r"mask must be \(B,\) = \(3,\), got \(1,\)"):
        where_state(torch.tensor([True]), state, state)
    with pytest.raises(TypeError, match=r"mask must be bool, got torch.float32; convert with mask.bool\(\)"):
        where_state(torch.ones(3), state, state)


def test_concatenation_undoes_selection(stack: xLSTMBlockStack) -> None:
    state = state_after(stack, 4)
    assert_equal(concat_states([select_state(state, slice(0, 1)), select_state(state, slice(1, 4))]), state)
    with pytest.raises(ValueError, match="at least one state"):
        concat_states([])


def test_a_detached_state_carries_no_gradient(stack: xLSTMBlockStack) -> None:
    state = state_after(stack, 2)
    assert any(leaf.requires_grad for leaf in state_leaves(state))
    assert not any(leaf.requires_grad for leaf in state_leaves(detach_state(state)))
    assert_equal(detach_state(state), state)


def test_moving_maps_every_tensor_to_the_device(stack: xLSTMBlockStack) -> None:
    moved = move_state(stack.initial_state(2), "meta")
    assert {leaf.device.type for leaf in state_leaves(moved)} == {"meta"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_states_survive_deepcopy_and_pickle(stack: xLSTMBlockStack, duplicate: object) -> None:
    state = detach_state(state_after(stack, 2))
    again = duplicate(state)
    assert type(again[0]) is type(state[0])
    assert_equal(again, state)


def test_a_saved_state_is_loaded_without_trusting_the_file(stack: xLSTMBlockStack, tmp_path: Path) -> None:
    state = detach_state(state_after(stack, 2))
    torch.save(state, tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert type(again[0].cell) is type(state[0].cell)
    assert_equal(again, state)


def test_a_saved_state_of_the_plain_lstm_is_loaded_as_well(tmp_path: Path) -> None:
    state = initial_lstm_state(2, 1, 3)
    torch.save(state, tmp_path / "state.pt")
    assert isinstance(torch.load(tmp_path / "state.pt", weights_only=True), LSTMState)


def test_running_on_never_changes_a_state(stack: xLSTMBlockStack) -> None:
    state = state_after(stack, 2)
    before = map_state(torch.clone, state)
    stack(torch.randn(2, 3, 8), state, torch.tensor([[True, False, True]] * 2))
    assert_equal(state, before)


def test_a_state_keeps_no_more_memory_alive_than_its_own(stack: xLSTMBlockStack) -> None:
    with torch.no_grad():
        _, state = stack(torch.randn(2, 500, 8))
    for leaf in state_leaves(state):
        assert leaf.untyped_storage().nbytes() <= 4 * leaf.numel() * leaf.element_size()
