"""What holds for the matrix memory alone."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.kernels.recurrences import (
    FORWARD_TOLERANCE,
    GRADIENT_TOLERANCE,
    MLSTM,
    assert_close,
    differentiate,
    double,
)
from xlstm_kernels import mlstm, mLSTMState


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


@pytest.mark.parametrize("resets", [None, torch.arange(37).eq(20).expand(2, 37)], ids=["no resets", "a reset"])
@pytest.mark.parametrize(("DK", "DV"), [(24, 24), (48, 96), (96, 7)])
def test_head_dims_need_be_neither_equal_nor_powers_of_two(DK: int, DV: int, resets: Tensor | None) -> None:
    operands = double(2, 37, 1, DK), double(2, 37, 1, DK), double(2, 37, 1, DV), double(2, 37, 1), double(2, 37, 1)
    state = mLSTMState(double(2, 1, DK, DV), double(2, 1, DK), double(2, 1))
    expected = differentiate(lambda *x: MLSTM.reference(*x, resets), operands, state)
    actual = differentiate(lambda *x: MLSTM.entry(*x, resets=resets), operands, state)
    assert_close(actual, expected)


def quadratic_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """sum over s <= t of weights[t, s] (q_t k_s / sqrt(DK)) v_s, with weights (B, NH, S, S)."""
    scores = torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhts,bshv->bthv", (weights * scores).tril(), v)


@pytest.mark.parametrize("S", [1, 50])
def test_a_constant_forget_gate_without_normalisation_is_retention(S: int) -> None:
    q, k, v, _, _ = MLSTM.operands(S)
    gamma = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    f = torch.logit(gamma).expand(2, S, 3)
    h, _ = mlstm(q, k, v, torch.zeros_like(f), f, normalize=False)
    steps = torch.arange(S)
    decay = gamma[:, None, None] ** (steps[:, None] - steps)  # (NH, S, S)
    torch.testing.assert_close(h, quadratic_attention(q, k, v, decay), rtol=0, atol=1e-12)


@pytest.mark.parametrize("S", [1, 50])
def test_a_sigmoid_input_gate_without_normalisation_is_gated_linear_attention(S: int) -> None:
    q, k, v, i, f = MLSTM.operands(S)
    h, _ = mlstm(q, k, v, i, f, input_gate="sigmoid", normalize=False)
    forgotten = F.logsigmoid(f).cumsum(1).transpose(1, 2)  # (B, NH, S)
    weights = torch.exp(forgotten[..., :, None] - forgotten[..., None, :]) * i.sigmoid().transpose(1, 2)[..., None, :]
    torch.testing.assert_close(h, quadratic_attention(q, k, v, weights), rtol=0, atol=1e-12)


def test_a_sigmoid_input_gate_floors_the_denominator_at_one() -> None:
    q, k, v, i, f = MLSTM.operands(30)
    options = {"input_gate": "sigmoid", "normalize": False}
    numerator, _ = mlstm(q, k, v, i, f, **options)
    normaliser, _ = mlstm(q, k, torch.ones_like(v), i, f, **options)
    h, _ = mlstm(q, k, v, i, f, input_gate="sigmoid")
    torch.testing.assert_close(h, numerator / normaliser.abs().clamp(min=1.0), rtol=0, atol=1e-5)  # epsilon aside


@pytest.mark.parametrize("S", [1, 30])
def test_a_soft_cap_bounds_both_gates_as_capping_them_beforehand_does(S: int) -> None:
    q, k, v, i, f = MLSTM.operands(S)
    i_capped, f_capped = (2.5 * torch.tanh(x / 2.5) for x in (i, f))
    h, state = mlstm(q, k, v, i, f, soft_cap=2.5)
    h_capped, state_capped = mlstm(q, k, v, i_capped, f_capped)
    assert torch.equal(h, h_capped)
    assert all(torch.equal(x, y) for x, y in zip(state, state_capped, strict=True))


def test_gradients_with_all_options_equal_finite_differences() -> None:
    *operands, i, f = MLSTM.operands(6)
    *memory, m = MLSTM.state()
    leaves = [x.requires_grad_() for x in (*operands, i, f, *memory)]

    def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
        h, last = mlstm(
            *leaves[:5], mLSTMState(*leaves[5:], m), input_gate="sigmoid", normalize=False, soft_cap=3.0, chunk_size=4
        )
        scale = last.m.exp()[..., None]  # what is stored is relative to it, and it has no gradient
        return h, last.c * scale[..., None], last.n * scale

    assert torch.autograd.gradcheck(outputs, leaves)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_gate": "tanh"}, r"input_gate must be one of \('exponential', 'sigmoid'\), got 'tanh'"),
        ({"soft_cap": 0.0}, "soft_cap must be > 0 and finite, got 0.0"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLSTM.entry(*MLSTM.operands(3), **options)
