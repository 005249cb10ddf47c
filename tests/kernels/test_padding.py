"""Rows of different lengths in one batch: each must come out as if it had been run alone."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.kernels.recurrences import VARIANTS, B, Operands, Recurrence, assert_close, differentiate, double
from xlstm_kernels import LSTMState, lstm
from xlstm_kernels.ops.padding import align_left, align_right, check_lengths, valid_steps

S = 21
LSTM = Recurrence(
    name="lstm",
    entry=lstm,
    reference=lstm,
    random_operands=lambda S: (double(B, S, 4, 3, 6), 0.4 * double(4, 3, 6, 6), double(4, 3, 6)),
    random_state=lambda: LSTMState(double(B, 3, 6), double(B, 3, 6)),
    initial_state=lambda: LSTMState(*torch.zeros(2, B, 3, 6).double()),
    num_sequences=1,
)
of_each = pytest.mark.parametrize("op", [*VARIANTS, LSTM], ids=lambda op: op.name)
on_each_side = pytest.mark.parametrize("padding", ["right", "left"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True)
class Batch:
    """Rows with numbers of steps, and where those lie."""

    lengths: Tensor
    padding: str

    def own(self, row: int) -> slice:
        length = int(self.lengths[row])
        return slice(0, length) if self.padding == "right" else slice(S - length, S)

    def outside(self) -> Tensor:
        """Bool (B, S)."""
        outside = torch.ones(len(self.lengths), S, dtype=torch.bool)
        for row in range(len(self.lengths)):
            outside[row, self.own(row)] = False
        return outside

    def fill(self, op: Recurrence, operands: Operands, value: float) -> Operands:
        """The operands with ``value`` at all steps that are not a row's own."""
        outside = self.outside()
        sequences = (
            x.masked_fill(outside.view(*outside.shape, *[1] * (x.ndim - 2)), value)
            for x in operands[: op.num_sequences]
        )
        return *sequences, *operands[op.num_sequences :]


def rows_alone(op: Recurrence, batch: Batch, resets: Tensor | None) -> Callable:
    """Run each row by itself on its own steps, and lay the outputs where they belong."""

    def run(*arguments: Tensor) -> tuple[Tensor, tuple]:
        *operands, state = arguments
        outputs, states = [], []
        for row in range(B):
            own, alone = batch.own(row), op.rows(operands, row)
            last = type(state)(*(x[row : row + 1] for x in state))
            h = torch.zeros(1, S, *_output_shape(op, operands), dtype=operands[0].dtype)
            if own.start < own.stop:
                part = None if resets is None else resets[row : row + 1, own]
                h_own, last = op.entry(*op.steps(alone, own.start, own.stop), last, resets=part)
                pad = [0, 0] * (h_own.ndim - 2) + [own.start, S - own.stop]
                h = torch.nn.functional.pad(h_own, pad)
            outputs.append(h)
            states.append(last)
        return torch.cat(outputs), type(state)(*(torch.cat(leaves) for leaves in zip(*states, strict=True)))

    return run


def _output_shape(op: Recurrence, operands: Operands) -> torch.Size:
    """Heads and width of h: those of v, or of a gate."""
    return (operands[2] if op.num_sequences > 1 else operands[0][:, :, 0]).shape[2:]


@of_each
@on_each_side
@pytest.mark.parametrize("lengths", [(S, 8), (1, 17), (0, 5)], ids=str)
@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.parametrize("given_state", [False, True], ids=["fresh", "given state"])
def test_a_padded_batch_equals_each_row_run_alone(
    op: Recurrence, padding: str, lengths: tuple[int, int], with_resets: bool, given_state: bool
) -> None:
    batch = Batch(torch.tensor(lengths), padding)
    resets = torch.rand(B, S) < 0.15 if with_resets else None  # some of them lie outside, and must do nothing
    operands, state = op.operands(S), op.state(fresh=not given_state)
    expected = differentiate(rows_alone(op, batch, resets), operands, state, dtype=op.finest)
    padded = lambda *x: op.entry(*x, resets=resets, lengths=batch.lengths, padding=padding)  # noqa: E731
    assert_close(differentiate(padded, operands, state, dtype=op.finest), expected, op.finest)
    spoilt = differentiate(padded, batch.fill(op, operands, torch.nan), state, dtype=op.finest)
    assert_close(spoilt, expected, op.finest)


@of_each
@on_each_side
def test_a_row_without_steps_hands_its_state_on_bit_by_bit(op: Recurrence, padding: str) -> None:
    state = op.state()
    _, last = op.entry(*op.operands(S), state, lengths=torch.tensor([0, S]), padding=padding)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(last, state, strict=True))


@of_each
def test_a_step_of_no_length_leaves_the_state(op: Recurrence) -> None:
    state = op.state()
    operands = Batch(torch.tensor([0, 0]), "right").fill(op, op.operands(S), torch.inf)
    h, last = op.entry(*op.steps(operands, 0, 1), state, lengths=torch.tensor([0, 0], dtype=torch.int32))
    assert not h.any()
    assert all(torch.equal(x, y) for x, y in zip(last, state, strict=True))


def test_aligning_rolls_each_row_and_back() -> None:
    x, lengths = torch.arange(10).view(2, 5), torch.tensor([2, 5])
    aligned = align_left(x, lengths)
    assert aligned.tolist() == [[3, 4, 0, 1, 2], [5, 6, 7, 8, 9]]
    assert align_right(aligned, lengths).equal(x)
    assert valid_steps(lengths, 5).tolist() == [[True, True, False, False, False], [True] * 5]


@pytest.mark.parametrize(
    ("lengths", "padding", "error", "message"),
    [
        (torch.tensor([3, 7]), "right", ValueError, "lengths must be between 0 and S = 5, got 7"),
        (torch.tensor([-1, 2]), "right", ValueError, "lengths must be between 0 and S = 5, got -1"),
        (torch.tensor([1, 2, 3]), "right", ValueError, r"lengths must be \(B,\) = \(2,\), got \(3,\)"),
        (torch.tensor([1.0, 2.0]), "right", TypeError, "lengths must be int64 or int32, got torch.float32"),
        (torch.tensor([1, 2]), "middle", ValueError, r"padding must be one of \('right', 'left'\), got 'middle'"),
    ],
)
def test_lengths_that_do_not_fit_are_named(lengths: Tensor, padding: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_lengths(lengths, padding, 2, 5)


@of_each
def test_every_op_checks_lengths(op: Recurrence) -> None:
    with pytest.raises(ValueError, match="lengths must be between"):
        op.entry(*op.operands(3), lengths=torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="padding must be"):
        op.entry(*op.operands(3), padding="both")
