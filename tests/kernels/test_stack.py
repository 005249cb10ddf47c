"""Stacks and blocks: pieces equal the whole, resets equal fresh starts, every parameter learns, bad sizes are named."""

import copy
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch

from xlstm_kernels import StackState, concat_states, detach_state, select_state, xLSTMBlockStack, xLSTMConfig
from xlstm_kernels.state import state_leaves

SHAPES = {"mLSTM": (), "sLSTM": (0, 1), "mixed": (1,)}
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def stack(request: pytest.FixtureRequest) -> xLSTMBlockStack:
    torch.manual_seed(0)
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=16, num_blocks=2, num_heads=2, slstm_at=request.param)).double()
    with torch.no_grad():  # away from the zeros that the initialisation starts from
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return stack


def assert_states_close(a: StackState, b: StackState) -> None:
    for x, y in zip(state_leaves(a), state_leaves(b), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("cuts", [(13,), tuple(range(1, 40))], ids=["two pieces", "single steps"])
def test_a_sequence_equals_its_pieces_in_outputs_state_and_gradients(
    stack: xLSTMBlockStack, cuts: tuple[int, ...]
) -> None:
    x, resets = torch.randn(3, 40, 16, dtype=torch.float64), torch.rand(3, 40) < 0.1
    whole, state_whole = stack(x, resets=resets)
    pieces, state = [], None
    for start, stop in itertools.pairwise((0, *cuts, 40)):
        y, state = stack(x[:, start:stop], state, resets[:, start:stop])
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    assert_states_close(state, state_whole)
    weights = torch.randn_like(whole)
    parameters = list(stack.parameters())
    for a, b in zip(
        torch.autograd.grad((torch.cat(pieces, dim=1) * weights).sum(), parameters),
        torch.autograd.grad((whole * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_resets_equal_independent_runs(stack: xLSTMBlockStack) -> None:
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    resets = torch.zeros(2, 30, dtype=torch.bool)
    resets[0, 11] = resets[1, 20] = True
    y, state = stack(x, resets=resets)
    for row, at in ((0, 11), (1, 20)):
        before, _ = stack(x[row : row + 1, :at])
        after, last = stack(x[row : row + 1, at:])
        torch.testing.assert_close(y[row : row + 1], torch.cat([before, after], dim=1))
        assert_states_close(select_state(state, [row]), last)


def test_outputs_do_not_depend_on_later_inputs(stack: xLSTMBlockStack) -> None:
    x = torch.randn(1, 20, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 12:] += 1
    torch.testing.assert_close(stack(x)[0][:, :12], stack(changed)[0][:, :12], rtol=0, atol=0)


def test_rows_do_not_depend_on_each_other(stack: xLSTMBlockStack) -> None:
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    alone = [stack(row[None]) for row in x]
    y, state = stack(x)
    torch.testing.assert_close(y, torch.cat([y for y, _ in alone]))
    assert_states_close(state, concat_states([state for _, state in alone]))


def test_every_parameter_receives_a_gradient(stack: xLSTMBlockStack) -> None:
    y, _ = stack(torch.randn(2, 10, 16, dtype=torch.float64))
    y.square().sum().backward()
    without = [name for name, p in stack.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_gradients_cross_a_carried_state_until_it_is_detached(stack: xLSTMBlockStack) -> None:
    x = torch.randn(1, 6, 16, dtype=torch.float64, requires_grad=True)
    _, state = stack(x)
    later = torch.randn(1, 6, 16, dtype=torch.float64)
    assert torch.autograd.grad(stack(later, state)[0].square().sum(), x)[0].abs().sum() > 0
    assert torch.autograd.grad(stack(later, detach_state(state))[0].square().sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_stacks_survive_deepcopy_and_pickle(stack: xLSTMBlockStack, duplicate: Callable) -> None:
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    assert torch.equal(duplicate(stack)(x)[0], stack(x)[0])


def test_a_stack_of_bfloat16_keeps_float32_states() -> None:
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=16, num_blocks=2, slstm_at=(1,))).bfloat16()
    y, state = stack(torch.randn(2, 5, 16).bfloat16())
    assert y.dtype == torch.bfloat16
    assert {leaf.dtype for leaf in state_leaves(state)} == {torch.float32}


def test_blocks_named_from_the_end_are_counted_from_the_front() -> None:
    assert xLSTMConfig(embedding_dim=8, num_blocks=3, slstm_at=(-1, 0)).slstm_blocks == {0, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be >= 1, got 0"),
        ({"num_blocks": 0}, "num_blocks must be >= 1, got 0"),
        ({"slstm_at": (2,)}, r"slstm_at names blocks \[2\], but num_blocks is 2"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"ffn_factor": 0.0}, "ffn_factor must be > 0, got 0.0"),
    ],
)
def test_a_config_out_of_range_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        xLSTMConfig(**{"embedding_dim": 8, "num_blocks": 2, **changes})


def test_heads_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads must divide the inner width 20, got 3"):
        xLSTMBlockStack(xLSTMConfig(embedding_dim=10, num_blocks=1, num_heads=3))
    with pytest.raises(ValueError, match="num_heads must divide embedding_dim 10, got 3"):
        xLSTMBlockStack(xLSTMConfig(embedding_dim=10, num_blocks=1, num_heads=3, slstm_at=(0,)))


def test_inputs_of_another_width_and_foreign_states_are_named() -> None:
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=8, num_blocks=2))
    with pytest.raises(ValueError, match=r"x must be \(B, S, embedding_dim = 8\), got \(2, 3, 9\)"):
        stack(torch.zeros(2, 3, 9))
    with pytest.raises(ValueError, match="each of the 2 blocks, got 1"):
        stack(torch.zeros(2, 3, 8), stack.initial_state(2)[:1])
