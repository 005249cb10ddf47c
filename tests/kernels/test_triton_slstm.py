"""The sLSTM in Triton, run by Triton's interpreter on the CPU against the paper in float64.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import planned_anew, programs_side_by_side, require_interpreter

require_interpreter()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from tests.kernels.recurrences import EXPONENTIAL, SLSTM, Recurrence, assert_close, differentiate  # noqa: E402
from xlstm_kernels import backends, initial_slstm_state, slstm, sLSTMState  # noqa: E402
from xlstm_kernels.ops.slstm import triton_passes  # noqa: E402
from xlstm_kernels.ops.slstm.plan import Plan  # noqa: E402
from xlstm_kernels.ops.slstm.triton_kernels.cell import sigmoid_and_log  # noqa: E402

triton_slstm = partial(slstm, backend="triton")
OPS = [SLSTM, EXPONENTIAL]
SIZES = [(1, 2, 6), (9, 2, 6), (17, 1, 6), (5, 2, 16), (5, 1, 24)]  # S, NH, DH
B = 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_operands(S: int, NH: int, DH: int, *, exponential: bool = False, batch_size: int = B) -> tuple[Tensor, ...]:
    """In float32: gates, recurrent weight and bias; exponential forget gates mostly below 1, as m counts in units."""
    gates = 2 * torch.randn(batch_size, S, 4, NH, DH)
    gates[:, :, 1] -= 3.0 * exponential
    return gates, 0.3 * torch.randn(4, NH, DH, DH), torch.randn(4, NH, DH)


def random_state(NH: int, DH: int, *, batch_size: int = B) -> sLSTMState:
    h, c, m = torch.randn(3, batch_size, NH, DH)
    return sLSTMState(h, c, torch.rand(batch_size, NH, DH) + 0.5, m)


def entry(op: Recurrence) -> partial:
    """What ``op`` runs, with its options, in Triton."""
    return partial(op.entry, backend="triton")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.parametrize("given_state", [False, True], ids=["fresh", "given state"])
@pytest.mark.parametrize(("S", "NH", "DH"), SIZES)
def test_outputs_states_and_gradients_equal_the_reference(
    op: Recurrence, S: int, NH: int, DH: int, given_state: bool, with_resets: bool
) -> None:
    operands = random_operands(S, NH, DH, exponential=op is EXPONENTIAL)
    state = random_state(NH, DH) if given_state else initial_slstm_state(B, NH, DH)
    resets = torch.rand(B, S) < 0.2 if with_resets else None
    expected = differentiate(lambda *x: op.reference(*x, resets), operands, state)
    actual = differentiate(lambda *x: entry(op)(*x, resets=resets), operands, state, dtype=torch.float32)
    assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("closed", [-1e4, -torch.inf])
@pytest.mark.parametrize("gate", [0, 1], ids=["input", "forget"])
def test_a_gate_that_closes_for_one_step_hides_no_other(gate: int, closed: float) -> None:
    operands, state = random_operands(9, 2, 6), random_state(2, 6)
    operands[0][:, 4, gate] = closed
    expected = differentiate(SLSTM.reference, operands, state)
    assert_close(differentiate(triton_slstm, operands, state, dtype=torch.float32), expected, torch.float32)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_rows_of_different_lengths_equal_each_row_alone(op: Recurrence) -> None:
    operands, state = (
        random_operands(7, 2, 6, exponential=op is EXPONENTIAL, batch_size=4),
        random_state(2, 6, batch_size=4),
    )
    lengths, resets = torch.tensor([4, 0, 7, 1]), torch.rand(4, 7) < 0.3
    outside = torch.arange(7) >= lengths[:, None]

    def alone(gates: Tensor, weight: Tensor, bias: Tensor, state: sLSTMState) -> tuple[Tensor, sLSTMState]:
        outputs, states = [], []
        for row, length in enumerate(lengths.tolist()):
            h, last = gates.new_zeros(1, 0, 2, 6), sLSTMState(*(x[row : row + 1] for x in state))
            if length:
                own = slice(row, row + 1), slice(length)
                h, last = op.reference(gates[own], weight, bias, last, resets[own])
            outputs.append(torch.cat([h, h.new_zeros(1, 7 - length, 2, 6)], dim=1))
            states.append(last)
        return torch.cat(outputs), sLSTMState(*(torch.cat(parts) for parts in zip(*states, strict=True)))

    expected = differentiate(alone, operands, state)
    operands[0][outside] = torch.nan
    run = partial(entry(op), lengths=lengths, resets=resets)
    actual = differentiate(run, operands, state, dtype=torch.float32)
    assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("bound", [1e-3, 0.1, 1e3])
def test_bounded_recurrent_gradients_equal_the_reference(bound: float) -> None:
    operands, state, resets = random_operands(9, 2, 6), random_state(2, 6), torch.rand(B, 9) < 0.1
    options = {"recurrent_gradient_clip": bound}
    expected = differentiate(lambda *x: SLSTM.reference(*x, resets, **options), operands, state)
    run = partial(triton_slstm, resets=resets, **options)
    assert_close(differentiate(run, operands, state, dtype=torch.float32), expected, torch.float32)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("given_state", [False, True], ids=["fresh", "given state"])
def test_programs_that_share_a_head_equal_the_reference(
    op: Recurrence, given_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_passes, "plan", lambda *_: Plan(width=32, units=16, warps=1, stages=1))
    monkeypatch.setattr(triton_passes, "num_processors", lambda _: 5)  # two of three pairs at once
    batch_size, S, DH = 20, 5, 20
    operands = random_operands(S, 1, DH, exponential=op is EXPONENTIAL, batch_size=batch_size)
    state = random_state(1, DH, batch_size=batch_size) if given_state else initial_slstm_state(batch_size, 1, DH)
    resets = torch.rand(batch_size, S) < 0.2 if given_state else None
    options = {} if op is EXPONENTIAL else {"recurrent_gradient_clip": 0.5}
    expected = differentiate(lambda *x: op.reference(*x, resets, **options), operands, state)
    with planned_anew(triton_passes), programs_side_by_side():
        actual = differentiate(lambda *x: entry(op)(*x, resets=resets, **options), operands, state, dtype=torch.float32)
    assert_close(actual, expected, torch.float32)


def test_more_rows_than_a_program_takes_and_gates_of_any_strides() -> None:
    gates, weight, bias = random_operands(3, 2, 6, batch_size=18)
    state = random_state(2, 6, batch_size=18)
    expected = differentiate(lambda *x: SLSTM.reference(*x, None), (gates, weight, bias), state)
    for layout in ((0, 1, 3, 2, 4), (4, 1, 0, 2, 3)):  # heads before gates; units not next to each other
        inverse = [layout.index(dim) for dim in range(5)]
        run = lambda gates, *x, layout=layout, inverse=inverse: triton_slstm(  # noqa: E731
            gates.permute(layout).contiguous().permute(inverse), *x
        )
        actual = differentiate(run, (gates, weight, bias), state, dtype=torch.float32)
        assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("i", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("f", [-100.0, 0.0, 100.0])
def test_extreme_gates_stay_finite_and_as_exact_as_pytorch(i: float, f: float) -> None:
    gates, *weights = random_operands(9, 1, 6)
    gates += torch.tensor([i, f, 0.0, 0.0])[:, None, None]
    operands, state, run = (gates, *weights), random_state(1, 6), partial(slstm, resets=torch.rand(B, 9) < 0.1)
    exact = differentiate(partial(run, backend="native"), operands, state)
    pytorch, actual = (
        differentiate(partial(run, backend=name), operands, state, dtype=torch.float32) for name in ("native", "triton")
    )
    for kind in ("values", "gradients"):
        for e, p, a in zip(*(getattr(result, kind) for result in (exact, pytorch, actual)), strict=True):
            assert a.isfinite().all()
            scale = e.abs().max().clamp(min=1.0)
            assert (a - e).abs().max() <= 2 * (p - e).abs().max() + 1e-6 * scale


@triton.jit
def _gates_kernel(x, sigmoid, log1p, N: tl.constexpr):
    at = tl.arange(0, N)
    s, log = sigmoid_and_log(tl.load(x + at), EXACT=True)
    tl.store(sigmoid + at, s)
    tl.store(log1p + at, log)


def test_small_gates_and_their_logarithms_keep_their_relative_precision() -> None:
    x = torch.linspace(-80, 80, 1024)  # log(1 + exp(-|x|)) of a rounded sum would be 0 from 17 on
    sigmoid, log1p = torch.empty_like(x), torch.empty_like(x)
    _gates_kernel[(1,)](x, sigmoid, log1p, N=1024)
    torch.testing.assert_close(sigmoid.double(), x.double().sigmoid(), rtol=3e-7, atol=0)
    torch.testing.assert_close(log1p.double(), x.double().abs().neg().exp().log1p(), rtol=3e-7, atol=0)


def test_nan_in_a_gate_reaches_the_output_and_no_other_row() -> None:
    for gate in range(4):
        gates, weight, bias = random_operands(4, 1, 6)
        gates[0, 2, gate, 0, 2] = torch.nan
        h, _ = triton_slstm(gates, weight, bias)
        assert h[0, 2:, 0, 2].isnan().all()
        assert h[1:].isfinite().all()


@pytest.mark.parametrize("given_state", [False, True], ids=["fresh", "given state"])
def test_compiled_graphs_and_the_operator_itself_give_what_an_eager_call_gives(given_state: bool) -> None:
    gates, weight, bias = random_operands(4, 2, 6)
    operands, resets = (gates, weight.mT.contiguous().mT, bias), torch.rand(B, 4) < 0.2  # of any strides
    state = random_state(2, 6) if given_state else None

    def operator(*operands: Tensor) -> tuple[Tensor, sLSTMState]:
        options = (resets, None, False, None, True)
        h, *last, _ = torch.ops.xlstm_kernels.slstm_triton(*operands, *(state or [None] * 4), *options)
        return h, sLSTMState(*last)

    eager = partial(triton_slstm, state=state, resets=resets)
    results = []
    for function in (eager, torch.compile(eager, fullgraph=True, backend="aot_eager"), operator):
        leaves = [x.clone().requires_grad_() for x in operands]
        h, last = function(*leaves)
        results.append([h, *last, *torch.autograd.grad(h.sum() + last.c.sum(), leaves)])
    for others in results[1:]:
        assert all(torch.equal(a, e) for a, e in zip(others, results[0], strict=True))


@pytest.mark.parametrize("record", [True, False], ids=["recording", "not recording"])
@pytest.mark.parametrize("exponential", [False, True], ids=["sigmoid", "exponential"])
@pytest.mark.parametrize("marked", [False, True], ids=["plain", "resets and lengths"])
def test_the_operators_are_registered_rightly(marked: bool, exponential: bool, record: bool) -> None:
    operands = [x.requires_grad_(record) for x in random_operands(2, 1, 6)]
    resets = lengths = None
    state: list[Tensor | None] = [None] * 4
    if marked:
        lengths, resets = torch.tensor([2, 0, 1]), torch.tensor([[True, False], [False, False], [False, False]])
        state = [torch.rand(B, 1, 6).requires_grad_(record) for _ in range(3)]
        state.append(torch.randn(B, 1, 6))
    options = (resets, lengths, exponential, 0.5)
    triton_slstm(*random_operands(1, 1, 6))  # brings in the operators
    forward, backward = torch.ops.xlstm_kernels.slstm_triton, torch.ops.xlstm_kernels.slstm_triton_backward
    torch.library.opcheck(forward, (*operands, *state, *options, record))
    with torch.no_grad():
        h, *last, tape = forward(*operands, *state, *options, record)
    assert record == bool(tape.numel())
    if record:
        dlast = last[:3] if marked else [None] * 3
        saved = [*operands[1:], h, tape, *state[:3], *last[1:3]]
        torch.library.opcheck(backward, (h, *dlast, *(x if x is None else x.detach() for x in saved), *options))


def test_triton_is_taken_on_the_cpu_by_name_alone_and_never_for_float64_or_wide_heads() -> None:
    gates, weight, bias = random_operands(2, 1, 6)
    assert "triton" in backends()["slstm"]
    assert torch.equal(slstm(gates, weight, bias)[0], slstm(gates, weight, bias, backend=backends()["slstm"][-2])[0])
    with pytest.raises(ValueError, match="got 'triton'"):
        triton_slstm(gates.double(), weight.double(), bias.double())
    with pytest.raises(ValueError, match="got 'triton'"):
        triton_slstm(torch.zeros(1, 1, 4, 1, 1025), torch.zeros(4, 1, 1025, 1025))
