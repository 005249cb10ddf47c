"""What holds for the matrix memory alone."""

import pytest
import torch

from tests.kernels.recurrences import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, MLSTM, assert_close, differentiate


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_the_chunk_size_changes_no_result(chunk_size: int) -> None:
    operands, state, resets = MLSTM.operands(70), MLSTM.state(), torch.rand(2, 70) < 0.1
    expected = differentiate(lambda *x: MLSTM.entry(*x, resets=resets), operands, state)
    actual = differentiate(lambda *x: MLSTM.entry(*x, resets=resets, chunk_size=chunk_size), operands, state)
    assert_close(actual, expected)


def test_the_forget_gates_gradient_does_not_lose_precision_with_length() -> None:
    q, k, v, i, f = MLSTM.operands(2048)
    operands, state = (q.abs(), k.abs(), v, i, f + 6), MLSTM.state()
    exact = differentiate(MLSTM.entry, operands, state).gradients[4]
    rounded = differentiate(MLSTM.entry, operands, state, dtype=torch.float32).gradients[4]
    assert (rounded.double() - exact).abs().max() <= GRADIENT_TOLERANCE[torch.float32] * exact.abs().max()


def test_strong_forgetting_does_not_cost_the_decay_between_neighbours_its_precision() -> None:
    q, k, v, i, f = (x.float() for x in MLSTM.operands(64))
    operands = (q.abs(), k.abs(), v, 7 * i, f - 20)  # the sum of log f reaches -1,300 in a chunk, i makes up for it
    expected, _ = MLSTM.reference(*(x.double() for x in operands), MLSTM.state(fresh=True), None)
    actual, _ = MLSTM.entry(*operands, chunk_size=64)
    assert (actual.double() - expected).abs().max() <= FORWARD_TOLERANCE[torch.float32] * expected.abs().max()


def test_a_chunk_size_below_one_is_named() -> None:
    with pytest.raises(ValueError, match="chunk_size must be >= 1, got 0"):
        MLSTM.entry(*MLSTM.operands(3), chunk_size=0)
