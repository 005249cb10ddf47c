"""The plain LSTM against PyTorch's own."""

import pytest
import torch
from torch import nn

from tests.kernels.recurrences import DH, B, double
from xlstm_kernels import LSTMState, lstm

HIDDEN = DH


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def one_head(theirs: nn.LSTM, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gates, recurrent weight and bias that say the same as ``nn.LSTM``, whose gates have our order i, f, z, o."""
    gates = (x @ theirs.weight_ih_l0.T).unflatten(-1, (4, 1, HIDDEN))
    weight = theirs.weight_hh_l0.view(4, 1, HIDDEN, HIDDEN)
    return gates, weight, (theirs.bias_ih_l0 + theirs.bias_hh_l0).view(4, 1, HIDDEN)


@pytest.mark.parametrize("S", [1, 30])
def test_one_head_equals_nn_lstm_in_outputs_state_and_gradients(S: int) -> None:
    theirs, x = nn.LSTM(5, HIDDEN, batch_first=True).double(), double(B, S, 5).requires_grad_()
    h0, c0 = (double(1, B, HIDDEN).requires_grad_() for _ in range(2))
    expected, (h_theirs, c_theirs) = theirs(x, (h0, c0))
    actual, last = lstm(*one_head(theirs, x), LSTMState(h0.transpose(0, 1), c0.transpose(0, 1)))
    leaves, probe = [x, h0, c0, *theirs.parameters()], double(B, S, HIDDEN)
    gradients = (
        torch.autograd.grad((y * probe).sum() + c.sum(), leaves)
        for y, c in [(expected, c_theirs), (actual.squeeze(2), last.c)]
    )
    torch.testing.assert_close(actual.squeeze(2), expected)
    torch.testing.assert_close(last.h.transpose(0, 1), h_theirs)
    torch.testing.assert_close(last.c.transpose(0, 1), c_theirs)
    for theirs_, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs_)


def test_heads_are_independent() -> None:
    gates, weight, bias = double(B, 9, 4, 3, DH), double(4, 3, DH, DH), double(4, 3, DH)
    h, last = lstm(gates, weight, bias)
    for head in range(3):
        part = slice(head, head + 1)
        h_alone, last_alone = lstm(gates[:, :, :, part], weight[:, part], bias[:, part])
        torch.testing.assert_close(h[:, :, part], h_alone)
        torch.testing.assert_close(last.c[:, part], last_alone.c)


def test_gradients_equal_finite_differences() -> None:
    state = [double(B, 2, 3) for _ in range(2)]
    resets, lengths = torch.rand(B, 5) < 0.2, torch.tensor([5, 3])
    leaves = [x.requires_grad_() for x in (double(B, 5, 4, 2, 3), double(4, 2, 3, 3), double(4, 2, 3), *state)]

    def outputs(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h, last = lstm(*leaves[:3], LSTMState(*leaves[3:]), resets=resets, lengths=lengths)
        return h, *last

    assert torch.autograd.gradcheck(outputs, leaves)


def test_a_reset_row_starts_anew() -> None:
    gates, weight = double(B, 9, 4, 1, DH), double(4, 1, DH, DH)
    resets = torch.zeros(B, 9, dtype=torch.bool)
    resets[0, 4] = True
    h, _ = lstm(gates, weight, resets=resets)
    torch.testing.assert_close(h[:1, 4:], lstm(gates[:1, 4:], weight)[0])
    torch.testing.assert_close(h[1:], lstm(gates[1:], weight)[0])


def test_a_state_of_another_batch_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"state.h must be \(B, NH, DH\) = \(2, 1, 6\), got \(3, 1, 6\)"):
        lstm(double(2, 3, 4, 1, 6), double(4, 1, 6, 6), state=LSTMState(double(3, 1, 6), double(3, 1, 6)))
