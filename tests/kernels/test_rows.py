"""Rows of different lengths in one batch: a padded batch equals its rows run alone, whatever the padding holds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.stacks import (
    STACKS,
    D,
    assert_all_close,
    assert_states_close,
    double,
    gradients,
    random_resets,
    random_stack,
)
from xlstm_kernels import concat_states, detach_state, pack_state, select_state, xLSTMBlockStack
from xlstm_kernels.rows import PaddedRows

LENGTHS, S = torch.tensor([7, 0, 12, 2]), 12
SIDES: dict[str, Callable[[int], slice]] = {"right": lambda n: slice(0, n), "left": lambda n: slice(S - n, S)}
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=STACKS.values(), ids=STACKS)
def stack(request: pytest.FixtureRequest) -> xLSTMBlockStack:
    return random_stack(**request.param)


def fill_up(rows: list[Tensor], padding: str) -> Tensor:
    """Rows (length, D) as one batch (B, S, D) filled up with NaN."""
    x = torch.full((len(rows), S, D), torch.nan, dtype=torch.float64)
    for row, own in enumerate(rows):
        x[row, SIDES[padding](len(own))] = own
    return x


@pytest.mark.parametrize("padding", SIDES)
def test_a_padded_batch_equals_its_rows_run_alone(stack: xLSTMBlockStack, padding: str) -> None:
    rows = [double(n, D).requires_grad_() for n in LENGTHS.tolist()]
    resets = random_resets(4, S)  # in the padding too, where they must do nothing
    state = detach_state(stack(double(4, 5, D))[1])
    start = [leaf.requires_grad_() for block in state for leaf in (block.conv, *block.cell[:-1])]  # m has no gradient
    y, last = stack(fill_up(rows, padding), state, resets, lengths=LENGTHS, padding=padding)

    outputs, ends = torch.zeros_like(y), []
    for row, own in enumerate(rows):
        end = select_state(state, [row])
        if len(own):
            steps = SIDES[padding](len(own))
            outputs[row, steps], end = stack(own[None], end, resets[row : row + 1, steps])
        ends.append(end)
    expected = concat_states(ends)
    torch.testing.assert_close(y, outputs)
    assert_states_close(last, expected)
    inputs = [*rows, *start, *stack.parameters()]
    assert_all_close(gradients(y, last, inputs), gradients(outputs, expected, inputs))


@pytest.mark.parametrize("padding", SIDES)
def test_padding_gives_zeros_and_gets_no_gradient(padding: str) -> None:
    stack, x = random_stack(slstm_at="1:1"), double(4, S, D).requires_grad_()
    y, _ = stack(x, lengths=LENGTHS, padding=padding)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    for row, length in enumerate(LENGTHS.tolist()):
        own = torch.zeros(S, dtype=torch.bool)
        own[SIDES[padding](length)] = True
        for values in (y[row], dx[row]):
            assert not values[~own].any()
            assert values[own].any(dim=-1).all()


@pytest.mark.parametrize("padding", SIDES)
def test_a_step_of_some_rows_leaves_the_others_as_they_are(stack: xLSTMBlockStack, padding: str) -> None:
    state = stack(double(3, 5, D))[1]
    _, last = stack(double(3, 1, D), state, lengths=torch.tensor([1, 0, 1]), padding=padding)
    assert torch.equal(pack_state(last)[1], pack_state(state)[1])
    assert not torch.equal(pack_state(last)[0], pack_state(state)[0])


def test_padding_is_left_out_in_float32_too() -> None:
    stack, x = random_stack(slstm_at="1:1", embedding_dim=32).float(), torch.randn(4, S, 32)
    _, state = stack(x, lengths=LENGTHS)
    for row, length in ((0, 7), (2, 12), (3, 2)):
        _, alone = stack(x[row : row + 1, :length])
        torch.testing.assert_close(pack_state(select_state(state, [row])), pack_state(alone), rtol=0, atol=1e-5)


def test_lengths_of_all_steps_change_nothing(stack: xLSTMBlockStack) -> None:
    x = double(2, 9, D)
    y, state = stack(x, lengths=torch.tensor([9, 9]))
    expected, last = stack(x)
    torch.testing.assert_close(y, expected)
    assert_states_close(state, last)


@pytest.mark.parametrize(
    ("lengths", "padding", "message"),
    [
        (torch.tensor([3, 10]), "right", "got 10"),
        (torch.tensor([-1, 3]), "right", "got -1"),
        (torch.tensor([3, 3, 3]), "right", r"lengths must be \(B,\) = \(2,\), got \(3,\)"),
        (torch.tensor([3, 3]), "middle", r"padding must be one of \('right', 'left'\), got 'middle'"),
    ],
)
def test_lengths_that_do_not_fit_are_named(lengths: Tensor, padding: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_stack()(double(2, 9, D), lengths=lengths, padding=padding)


def test_reversed_rows_keep_their_padding_in_place_and_reverse_back() -> None:
    x = torch.arange(1, 9).view(2, 4)
    rows = PaddedRows.of(x, torch.tensor([3, 4]), "right")
    entered = rows.enter(x)
    assert rows.reverse(entered).tolist() == [[3, 2, 1, 0], [8, 7, 6, 5]]
    assert torch.equal(rows.reverse(rows.reverse(entered)), entered)
