"""Both recurrences against the paper line by line, and against themselves cut into pieces."""

import itertools
from collections.abc import Callable

import pytest
import torch

from tests.kernels.recurrences import (
    FORWARD_TOLERANCE,
    VARIANTS,
    Recurrence,
    Result,
    assert_close,
    differentiate,
)

pytestmark = pytest.mark.parametrize("op", VARIANTS, ids=lambda op: op.name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_resets(S: int, *, share: float = 0.1) -> torch.Tensor:
    return torch.rand(2, S) < share


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.parametrize("given_state", [False, True], ids=["fresh", "given state"])
@pytest.mark.parametrize("S", [1, 63, 64, 100])
def test_outputs_states_and_gradients_equal_the_reference(
    op: Recurrence, S: int, given_state: bool, with_resets: bool, dtype: torch.dtype
) -> None:
    if dtype.itemsize > op.finest.itemsize:
        pytest.skip(f"{op.name} takes no {dtype}")
    operands, resets = op.operands(S), random_resets(S) if with_resets else None
    state = op.state(fresh=not given_state)
    expected = differentiate(lambda *x: op.reference(*x, resets), operands, state)
    actual = differentiate(lambda *x: op.entry(*x, resets=resets), operands, state, dtype=dtype)
    assert_close(actual, expected, dtype)


def test_gradients_equal_finite_differences(op: Recurrence) -> None:
    if op.finest != torch.float64:
        pytest.skip("finite differences need float64")
    operands, state, resets = op.operands(7), op.state(), random_resets(7, share=0.2)
    assert resets.any()
    *memories, m = state

    def outputs(*leaves: torch.Tensor) -> torch.Tensor:
        memory = leaves[len(operands) :]
        return op.entry(*leaves[: len(operands)], type(state)(*memory, m), resets=resets)[0]

    # The epsilon beside the denominator is not rescaled with m, which the mathematics neglects: hence 1e-5.
    leaves = [x.requires_grad_() for x in (*operands, *memories)]
    assert torch.autograd.gradcheck(outputs, leaves, atol=1e-5)


@pytest.mark.parametrize("cuts", [(40,), (1, 17, 64), tuple(range(1, 70))], ids=["two", "four", "single steps"])
def test_a_sequence_equals_its_pieces_in_outputs_state_and_gradients(op: Recurrence, cuts: tuple[int, ...]) -> None:
    S, resets = 70, random_resets(70)
    borders = [0, *cuts, S]

    def run_pieces(*arguments: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        *operands, state = arguments
        outputs = []
        for start, stop in itertools.pairwise(borders):
            h, state = op.entry(*op.steps(operands, start, stop), state, resets=resets[:, start:stop])
            outputs.append(h)
        return torch.cat(outputs, dim=1), state

    operands, state = op.operands(S), op.state()
    whole = differentiate(lambda *x: op.entry(*x, resets=resets), operands, state, dtype=op.finest)
    assert_close(differentiate(run_pieces, operands, state, dtype=op.finest), whole, op.finest)


def test_a_reset_sequence_equals_independent_runs(op: Recurrence) -> None:
    S, at = 50, 21
    resets = torch.zeros(2, S, dtype=torch.bool)
    resets[0, at] = True
    operands, state = op.operands(S), op.state()
    h, last = op.entry(*operands, state, resets=resets)
    first = op.rows(op.steps(operands, 0, at), 0)
    second = op.rows(op.steps(operands, at, S), 0)
    h_first, _ = op.entry(*first, type(state)(*(x[:1] for x in state)))
    h_second, last_second = op.entry(*second, None)
    h_other, last_other = op.entry(*op.rows(operands, 1), type(state)(*(x[1:] for x in state)))
    independent = [torch.cat([torch.cat([h_first, h_second], 1), h_other])]
    independent += [torch.cat(parts) for parts in zip(last_second, last_other, strict=True)]
    assert_close(Result([h, *last], []), Result(independent, []), op.finest)


def test_a_reset_before_the_first_step_forgets_the_given_state(op: Recurrence) -> None:
    operands, state = op.operands(5), op.state()
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[:, 0] = True
    h, last = op.entry(*operands, state, resets=resets)
    h_fresh, last_fresh = op.entry(*operands)
    assert_close(Result([h, *last], []), Result([h_fresh, *last_fresh], []), op.finest)


def test_a_reset_before_the_first_step_forgets_even_what_is_not_a_number(op: Recurrence) -> None:
    operands = op.operands(5)
    state = type(op.state())(*(torch.full_like(x, torch.nan) for x in op.state()))
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[:, 0] = True
    forgotten = differentiate(lambda *x: op.entry(*x, resets=resets), operands, state, dtype=op.finest)
    fresh = differentiate(op.entry, operands, op.state(fresh=True), dtype=op.finest)
    gradients = len(operands)  # the state's own are those of a memory that nothing reads
    assert_close(
        Result(forgotten.values, forgotten.gradients[:gradients]),
        Result(fresh.values, fresh.gradients[:gradients]),
        op.finest,
    )


@pytest.mark.parametrize("closed", [-1e4, -1e20, -torch.inf])
@pytest.mark.parametrize("gate", ["input", "forget"])
def test_a_gate_that_closes_for_one_step_hides_no_other(op: Recurrence, gate: str, closed: float) -> None:
    operands, state = op.operands(40), op.state()
    gates = operands[3 if gate == "input" else 4] if op.num_sequences > 1 else operands[0][:, :, int(gate == "forget")]
    gates[:, 20] = closed
    expected = differentiate(op.reference, operands, state)
    actual = differentiate(op.entry, operands, state, dtype=op.finest)
    assert_close(actual, expected, torch.float32)  # whatever the type: a sum of 1e4 is rounded


def test_a_memory_that_holds_nothing_is_empty_whatever_its_scale(op: Recurrence) -> None:
    operands, state = op.operands(6), op.state(fresh=True)
    *_, m = state
    rescaled = type(state)(*state[:-1], torch.zeros_like(m))
    expected = op.reference(*(x.double() for x in operands), type(state)(*(x.double() for x in rescaled)), None)
    h, last = op.entry(*operands, rescaled)
    assert_close(Result([h, *last], []), Result([expected[0], *expected[1]], []), op.finest)


def test_the_given_state_is_not_changed(op: Recurrence) -> None:
    operands, state = op.operands(9), op.state()
    copy = [x.clone() for x in state]
    op.entry(*operands, state, resets=random_resets(9))
    assert all(torch.equal(x, y) for x, y in zip(state, copy, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_operands_keep_a_float32_state(op: Recurrence, dtype: torch.dtype) -> None:
    operands = tuple(x.to(dtype) for x in op.operands(33))
    h, last = op.entry(*operands)
    h_exact, _ = op.reference(*(x.double() for x in operands), op.initial_state(), None)
    assert h.dtype == dtype
    assert {x.dtype for x in last} == {torch.float32}
    # The output is rounded to the operands' type once, and nothing else is.
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(h.double(), h_exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_operands_cost_no_more_than_their_own_rounding(op: Recurrence, dtype: torch.dtype) -> None:
    operands, state = op.operands(64), op.state()
    num_wide = 3 if op.num_sequences > 1 else 1  # q, k, v or gates; all else stays in float32

    def in_half(run: Callable) -> Callable:
        """Operands and output in half precision; the reference computes in float32 in between."""
        wide = (lambda x: x.to(dtype)) if run is op.entry else (lambda x: x.to(dtype).float())

        def rounded(*arguments: torch.Tensor) -> tuple[torch.Tensor, tuple]:
            h, last = run(*(wide(x) for x in arguments[:num_wide]), *arguments[num_wide:])
            return h.to(dtype), last

        return rounded

    exact = differentiate(op.reference, operands, state)
    expected, actual = (
        differentiate(in_half(run), operands, state, dtype=torch.float32) for run in (op.reference, op.entry)
    )
    for a, r, e in zip(*(x.values + x.gradients for x in (actual, expected, exact)), strict=True):
        error, expected_error = ((x.double() - e).square().mean().sqrt() for x in (a, r))
        assert error <= 2 * expected_error + 1e-6 * e.abs().max()


@pytest.mark.parametrize("i", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("f", [-100.0, 0.0, 100.0])
def test_extreme_gates_stay_finite_and_right(op: Recurrence, i: float, f: float) -> None:
    operands, state = op.operands(40), op.state()
    if op.num_sequences > 1:  # the mLSTM
        q, k, v, noise_i, noise_f = operands
        operands = (q, k, v, i + noise_i, f + noise_f)
    else:
        gates, weight, bias = operands
        shift = torch.tensor([i, f, 0.0, 0.0], dtype=gates.dtype)[:, None, None]
        operands = (gates + shift, weight, bias)
    resets = random_resets(40)
    exact, rounded = (
        differentiate(lambda *x: op.reference(*x, resets), operands, state, dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    )
    actual = differentiate(lambda *x: op.entry(*x, resets=resets), operands, state, dtype=torch.float32)
    # c and n are in units of exp(m), and m is rounded: an exponential forget gate takes it into the thousands.
    units = (actual.values[-1].double() - exact.values[-1]).abs().max()
    for kind in ("values", "gradients"):
        tensors = [getattr(result, kind) for result in (actual, rounded, exact)]
        largest = max(e.abs().max() for e in tensors[2])
        for a, r, e in zip(*tensors, strict=True):
            assert a.isfinite().all()
            # Where n is nearly orthogonal to q the problem itself is ill-conditioned, for the paper's form as well.
            assert (a.double() - e).abs().max() <= 10 * (r.double() - e).abs().max() + (1e-6 + units) * largest


def test_a_long_memory_stays_exact(op: Recurrence) -> None:
    S = 4096
    operands, state = op.operands(S), op.state()
    if op.num_sequences > 1:  # the mLSTM
        q, k, v, i, _ = operands
        operands = (
            q.abs(),
            k.abs(),
            v,
            i,
            torch.full_like(i, op.keeping),
        )  # n^T q > 0: no division by a sum that cancels
    else:
        gates, weight, bias = operands
        gates[:, :, 1], weight[1], bias[1] = op.keeping, 0.0, 0.0
        operands = (gates, 0.1 * weight, bias)
    expected, _ = op.reference(*(x.double() for x in operands), type(state)(*(x.double() for x in state)), None)
    actual, last = op.entry(*(x.float() for x in operands), type(state)(*(x.float() for x in state)))
    assert all(x.isfinite().all() for x in last)
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < FORWARD_TOLERANCE[torch.float32]


def test_unknown_backends_and_empty_sequences_are_named(op: Recurrence) -> None:
    operands = op.operands(3)
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'cuda'"):
        op.entry(*operands, backend="cuda")
    with pytest.raises(ValueError, match="at least one step"):
        op.entry(*op.steps(operands, 0, 0))


def test_resets_of_the_wrong_shape_or_type_are_named(op: Recurrence) -> None:
    operands = op.operands(3)
    with pytest.raises(ValueError, match=r"resets must be \(B, S\) = \(2, 3\), got \(2, 4\)"):
        op.entry(*operands, resets=torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"resets must be bool, got torch.float32"):
        op.entry(*operands, resets=torch.zeros(2, 3))


def test_operands_that_do_not_go_together_are_named(op: Recurrence) -> None:
    first, *others = op.operands(3)
    with pytest.raises(TypeError, match=r"\w+ must be a tensor, got list; convert it with torch.as_tensor"):
        op.entry([1.0], *others)
    with pytest.raises(TypeError, match=r"must be floating point, got torch.int64; convert with \w+.float\(\)"):
        op.entry(first.long(), *others)
    with pytest.raises(TypeError, match=r"operands are all float64 or none is, got \w+ torch.float64, .*torch.float32"):
        op.entry(first.double(), *(x.float() for x in others))
    with pytest.raises(ValueError, match=r"is on cpu but \w+ on meta; move it with \w+.to\('meta'\)"):
        op.entry(first.to("meta"), *others)


def test_a_state_of_another_type_or_device_is_named(op: Recurrence) -> None:
    operands, state = op.operands(3), op.state()
    with pytest.raises(TypeError, match=r"state must be an \w+, got tuple; None is the empty memory"):
        op.entry(*operands, tuple(state))
    with pytest.raises(TypeError, match=r"state.\w must be torch.float\d\d for these operands, got torch.bfloat16"):
        op.entry(*operands, type(state)(*(x.bfloat16() for x in state)))
    with pytest.raises(ValueError, match=r"state.\w is on meta but \w+ on cpu"):
        op.entry(*operands, type(state)(*(x.to("meta") for x in state)))


def test_a_state_of_another_batch_size_is_named(op: Recurrence) -> None:
    state = op.state()
    with pytest.raises(ValueError, match=r"state\.\w must be .* got \(1, "):
        op.entry(*op.operands(3), type(state)(*(x[:1] for x in state)))
