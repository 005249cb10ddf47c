"""The mLSTM's Triton kernels in Triton's interpreter, on the CPU, against the paper in float64."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import planned_anew, require_interpreter

require_interpreter()

from tests.kernels.recurrences import MLSTM, assert_close, differentiate, double  # noqa: E402
from xlstm_kernels import backends, initial_mlstm_state, mlstm, mLSTMState  # noqa: E402
from xlstm_kernels.ops.mlstm import triton_launch, triton_passes  # noqa: E402
from xlstm_kernels.ops.mlstm.plan import Plan, Tiles, few_and_long, plan  # noqa: E402

OP = replace(MLSTM, entry=partial(mlstm, backend="triton"), finest=torch.float32)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_arguments(B: int, S: int, NH: int, DK: int, DV: int) -> tuple[tuple[Tensor, ...], mLSTMState]:
    """Operands that remember for longer than a chunk, and a state, rounded to float32."""
    shapes = [(B, S, NH, DK), (B, S, NH, DK), (B, S, NH, DV), (B, S, NH), (B, S, NH)]
    q, k, v, i, f = (double(*shape).float() for shape in shapes)
    return (q, k, v, 3 * i, 3 + 2 * f), mLSTMState(
        *(double(*s).float() for s in ((B, NH, DK, DV), (B, NH, DK), (B, NH)))
    )


def random_resets(B: int, S: int) -> Tensor:
    return torch.rand(B, S) < 0.15


def assert_equals_the_reference(operands: tuple[Tensor, ...], state: mLSTMState, **options: object) -> None:
    resets, normalize = options.pop("resets", None), options.get("normalize", True)
    expected = differentiate(lambda *x: OP.reference(*x, resets, normalize=normalize), operands, state)
    actual = differentiate(lambda *x: OP.entry(*x, resets=resets, **options), operands, state, dtype=torch.float32)
    assert_close(actual, expected, torch.float32)


# Each way to cut the work, in tiles so small that heads, chunks and programs are several.
SMALL, OUT = Tiles(16, 16, 4, rows=16), Tiles(16, 32, 4, rows=16, out=16)
WALK = Plan(16, walk=SMALL, backward_states=SMALL, chunks=SMALL)
APART = Plan(16, states=SMALL, outputs=SMALL, backward_states=SMALL, chunks=SMALL)
ROLES = Plan(32, states=SMALL, outputs=SMALL, backward_states=SMALL, roles=OUT)
PLANS = {"walk": WALK, "apart": APART, "roles": ROLES}


@pytest.fixture
def planned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """The plan that a test names, in force for all heads; programs go through two chunks, the last through one."""
    plan = PLANS[request.param]
    monkeypatch.setattr(triton_passes, "ENOUGH", 3)
    monkeypatch.setattr(triton_passes, "plan_of", lambda case: plan)
    with planned_anew(triton_passes):
        yield plan


@pytest.mark.parametrize("planned", PLANS, indirect=True)
@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.parametrize("given_state", [False, True], ids=["fresh", "given state"])
@pytest.mark.parametrize("S", [1, 37])
def test_outputs_states_and_gradients_equal_the_reference(
    S: int, given_state: bool, with_resets: bool, planned: Plan
) -> None:
    DK, DV = (20, 24) if planned is ROLES else (8, 20)
    (q, k, *others), state = random_arguments(1, S, 2, DK, DV)
    operands = (q.abs(), k.abs(), *others)  # no division by a sum that cancels
    state = mLSTMState(state.c, state.n.abs(), state.m) if given_state else initial_mlstm_state(1, 2, DK, DV)
    assert_equals_the_reference(operands, state, resets=random_resets(1, S) if with_resets else None)


@pytest.mark.parametrize("planned", PLANS, indirect=True)
@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
def test_without_a_state_the_memory_starts_empty(with_resets: bool, planned: Plan) -> None:
    (q, k, *others), _ = random_arguments(1, 40, 1, 8, 20)
    operands = (q.abs(), k.abs(), *others)
    resets = random_resets(1, 40) if with_resets else None
    leaves = [[x.clone().requires_grad_() for x in operands] for _ in range(2)]
    given, fresh = (
        mlstm(*x, s, resets=resets, backend="triton")
        for x, s in zip(leaves, (initial_mlstm_state(1, 1, 8, 20), None), strict=True)
    )
    assert torch.equal(given[0], fresh[0])
    assert all(torch.equal(a, b) for a, b in zip(given[1], fresh[1], strict=True))
    gradients = [torch.autograd.grad(run[0].sum(), x) for run, x in zip((given, fresh), leaves, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("planned", PLANS, indirect=True)
@pytest.mark.parametrize("closed", [-1e4, -1e20, -torch.inf])
@pytest.mark.parametrize("gate", ["i", "f"])
def test_a_gate_that_closes_for_one_step_hides_no_other(gate: str, closed: float, planned: Plan) -> None:
    (q, k, v, *gates), state = random_arguments(1, 20, 1, 8, 20)
    gates["if".index(gate)][:, 4] = closed
    assert_equals_the_reference((q.abs(), k.abs(), v, *gates), mLSTMState(state.c, state.n.abs(), state.m))


@pytest.mark.parametrize("planned", PLANS, indirect=True)
@pytest.mark.parametrize("spoilt", range(3), ids=["c", "n", "m"])
def test_a_reset_at_the_first_step_forgets_a_state_of_nan(spoilt: int, planned: Plan) -> None:
    operands, state = random_arguments(1, 20, 2, 8, 20)
    state[spoilt].fill_(torch.nan)
    leaves = [x.clone().requires_grad_() for x in (*operands, state.c, state.n)]
    resets = torch.arange(20).eq(0)[None]
    h, last = mlstm(*leaves[:5], mLSTMState(*leaves[5:], state.m), resets=resets, backend="triton")
    expected, expected_last = mlstm(*operands, backend="triton")
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(tuple(last), tuple(expected_last))
    gradients = torch.autograd.grad(h.sum() + last.c.sum(), leaves)
    assert all(x.isfinite().all() for x in gradients)
    assert not any(x.any() for x in gradients[5:])


@pytest.mark.parametrize("planned", PLANS, indirect=True)
def test_without_gradients_it_gives_the_same_and_keeps_nothing(planned: Plan) -> None:
    operands, state = random_arguments(1, 40, 1, 8, 20)
    recorded = OP.entry(*(x.requires_grad_() for x in operands), state)
    with torch.no_grad():
        plain = OP.entry(*operands, state)
    assert torch.equal(recorded[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(recorded[1], plain[1], strict=True))


def test_heads_wider_than_128_fit() -> None:
    (q, k, *others), state = random_arguments(1, 20, 1, 132, 20)
    operands = (q.abs(), k.abs(), *others)
    assert_equals_the_reference(operands, mLSTMState(state.c, state.n.abs(), state.m), resets=random_resets(1, 20))


@pytest.mark.parametrize("operand", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("chunk_size", [None, 16, 64])
def test_roles_read_only_steps_that_outputs_wrote(width: int, operand: torch.dtype, chunk_size: int | None) -> None:
    chosen = plan(width, width, operand, False, chunk_size)
    if chosen.outputs is not None and chosen.roles is not None:
        assert chosen.outputs.rows % chosen.roles.rows == 0


def test_few_heads_over_many_steps_are_taken_apart() -> None:
    assert plan(64, 64, torch.bfloat16, few_and_long(4, 8192), None).walk is None
    assert plan(64, 64, torch.bfloat16, few_and_long(256, 8192), None).walk is not None
    assert plan(64, 64, torch.bfloat16, few_and_long(4, 512), None).walk is not None


@pytest.mark.parametrize(
    ("dtype", "setting", "precision"),
    [
        (torch.float32, "highest", "ieee"),
        (torch.float32, "high", "tf32"),
        (torch.float16, "highest", "tf32"),
        (torch.float16, "medium", "tf32"),
    ],
)
def test_products_of_float32_alone_follow_pytorchs_setting(
    dtype: torch.dtype, setting: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (q, k, *others), state = random_arguments(1, 33, 1, 8, 5)
    operands = [x.to(dtype) for x in (q.abs(), k.abs(), *others)]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: setting)
    seen: list[str] = []
    passes_over = triton_launch.passes_over

    def spy(*arguments: object) -> object:
        seen.append(str(arguments[-1]))
        return passes_over(*arguments)

    monkeypatch.setattr(triton_launch, "passes_over", spy)
    expected, _ = mlstm(*operands, state, backend="native")
    h, _ = mlstm(*operands, state, backend="triton")
    assert seen == [precision]
    assert (h - expected).norm() <= (1e-5 if dtype == torch.float32 else 1e-3) * expected.norm()


@pytest.mark.parametrize(("DK", "DV"), [(24, 40), (16, 96), (72, 24)])
def test_head_dims_need_be_neither_equal_nor_powers_of_two(DK: int, DV: int) -> None:
    (q, k, *others), state = random_arguments(1, 33, 1, DK, DV)
    operands = (q.abs(), k.abs(), *others)  # no division by a sum that cancels
    assert_equals_the_reference(operands, state, resets=random_resets(1, 33), chunk_size=16)


@pytest.mark.parametrize("chunk_size", [None, 1, 33, 1000])
def test_any_chunk_size_gives_the_same(chunk_size: int | None) -> None:
    operands, state = random_arguments(1, 70, 1, 8, 5)
    assert_equals_the_reference(operands, state, resets=random_resets(1, 70), chunk_size=chunk_size)


@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
def test_without_a_denominator_it_equals_the_reference_as_well(with_resets: bool) -> None:
    (q, k, v, i, f), state = random_arguments(2, 33, 1, 8, 5)
    resets = random_resets(2, 33) if with_resets else None
    assert_equals_the_reference((q, k, v, i / 3, f), state, resets=resets, chunk_size=16, normalize=False)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_rows_of_different_lengths_equal_the_exact_path_whatever_the_padding_holds(padding: str) -> None:
    operands, state = random_arguments(3, 33, 1, 8, 5)
    lengths = torch.tensor([33, 0, 18])
    run = partial(MLSTM.entry, lengths=lengths, padding=padding)
    expected = differentiate(run, operands, state)
    padded = torch.arange(33) >= lengths[:, None] if padding == "right" else torch.arange(33) < 33 - lengths[:, None]
    operands = tuple(x.masked_fill(padded.view(3, 33, *[1] * (x.ndim - 2)), torch.nan) for x in operands)
    run = partial(OP.entry, lengths=lengths, padding=padding, chunk_size=16)
    assert_close(differentiate(run, operands, state, dtype=torch.float32), expected, torch.float32)


@pytest.mark.parametrize("i", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("f", [-100.0, 0.0, 100.0])
def test_extreme_gates_stay_finite_and_as_exact_as_the_paper_in_float32(i: float, f: float) -> None:
    (q, k, v, noise_i, noise_f), state = random_arguments(1, 33, 1, 8, 5)
    operands, resets = (q, k, v, i + noise_i, f + noise_f), random_resets(1, 33)
    exact, rounded = (
        differentiate(lambda *x: OP.reference(*x, resets), operands, state, dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    )
    actual = differentiate(lambda *x: OP.entry(*x, resets=resets), operands, state, dtype=torch.float32)
    for kind in ("values", "gradients"):
        tensors = [getattr(result, kind) for result in (actual, rounded, exact)]
        largest = max(e.abs().max() for e in tensors[2])
        for a, r, e in zip(*tensors, strict=True):
            assert a.isfinite().all()
            assert (a.double() - e).abs().max() <= 10 * (r.double() - e).abs().max() + 1e-5 * largest


def test_strong_forgetting_does_not_cost_the_decay_between_neighbours_its_precision() -> None:
    (q, k, v, i, f), state = random_arguments(2, 64, 3, 8, 5)
    operands = (q.abs(), k.abs(), v, 20 * i, f - 60)  # the sum of log f reaches -3,600 in a chunk, i makes up for it
    assert_equals_the_reference(operands, state, chunk_size=64)


@pytest.mark.parametrize("planned", PLANS, indirect=True)
def test_a_large_scale_of_the_memory_is_rounded_without_loss(planned: Plan) -> None:
    (q, k, v, i, f), _ = random_arguments(1, 70, 1, 8, 20)
    operands = (q.abs(), k.abs(), v, i + 10_000, f)  # of m float32 keeps three decimals
    leaves = [x.clone().requires_grad_() for x in operands]
    exact = [x.double().requires_grad_() for x in operands]
    h, h_exact = mlstm(*leaves, backend="triton")[0], mlstm(*exact, backend="native")[0]
    gradients, expected = (torch.autograd.grad(y.sum(), x) for y, x in ((h, leaves), (h_exact, exact)))
    for a, e in zip((h, *gradients), (h_exact, *expected), strict=True):
        assert (a.double() - e).abs().max() <= 1e-5 * max(e.abs().max().item(), 1.0)


def test_what_lies_apart_in_memory_needs_no_copy() -> None:
    (q, k, v, i, f), state = random_arguments(2, 20, 2, 8, 8)
    packed = torch.stack([q, k, v], dim=3)  # (B, S, NH, 3, D)
    assert_equals_the_reference((*packed.unbind(3), i, f), state, chunk_size=16)
    transposed = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    h, _ = OP.entry(*transposed, i, f, state)
    assert torch.equal(h, OP.entry(q, k, v, i, f, state)[0])


def test_half_precision_operands_give_results_of_their_precision() -> None:
    dtype = torch.float16  # the interpreter multiplies bfloat16 as if it were integers
    (q, k, *others), state = random_arguments(2, 33, 1, 16, 16)
    operands = tuple(x.to(dtype) for x in (q.abs(), k.abs(), *others))
    leaves = [x.clone().requires_grad_() for x in operands]
    h, last = OP.entry(*leaves, state)
    assert h.dtype == dtype
    assert {x.dtype for x in last} == {torch.float32}
    gradients = torch.autograd.grad(h.float().sum(), leaves)
    exact_leaves = [x.double().requires_grad_() for x in operands]
    h_exact, _ = OP.reference(*exact_leaves, mLSTMState(*(x.double() for x in state)), None)
    exact = torch.autograd.grad(h_exact.sum(), exact_leaves)
    for a, e in zip((h, *gradients), (h_exact, *exact), strict=True):
        assert a.dtype == dtype
        assert (a.double() - e).norm() <= 2 * torch.finfo(dtype).eps * e.norm()


@pytest.mark.parametrize("given_state", [False, True], ids=["fresh", "given state"])
def test_a_compiled_graph_gives_what_an_eager_call_gives(given_state: bool) -> None:
    operands, state = random_arguments(2, 20, 2, 8, 5)
    state, resets = state if given_state else None, random_resets(2, 20)
    run = partial(OP.entry, resets=resets)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, run):
        leaves = [x.clone().requires_grad_() for x in operands]
        h, last = function(*leaves, state)
        results.append([h, *last, *torch.autograd.grad(h.sum() + last.c.sum(), leaves)])
    assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))


@pytest.mark.parametrize("record", [True, False], ids=["recording", "not recording"])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize("with_resets", [True, False], ids=["resets", "no resets"])
def test_the_operators_are_registered_rightly(
    with_resets: bool, normalize: bool, record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape_of = triton_passes.Passes.tape  # a record has room that nobody writes, and opcheck compares all of it
    monkeypatch.setattr(triton_passes.Passes, "tape", lambda *x, **y: tape_of(*x, **y).zero_())
    (q, k, v, i, f), state = random_arguments(2, 17, 2, 8, 5)
    arguments = [x.requires_grad_(record) for x in (q, k, v, i, f, state.c, state.n)] + [state.m]
    resets = random_resets(2, 17) if with_resets else None
    options = (16, normalize, "ieee")
    for fresh in (False, True):
        given = [*arguments[:5], None, None, None] if fresh else arguments
        torch.library.opcheck(triton_launch._operator, (*given, resets, *options, record))
        given = [None if x is None else x.detach() for x in given]
        h, c, n, _, *tape = triton_launch._operator(*given, resets, *options, record)
        assert [bool(x.numel()) for x in tape] == [record, record]
        if record:
            options_back = (*options, fresh, with_resets)
            inputs = (h, None if fresh else c, None if fresh else n, *given[:4], h, *tape, *options_back)
            torch.library.opcheck(torch.ops.xlstm_kernels.mlstm_triton_backward.default, inputs)


def test_it_is_listed_and_refuses_what_it_does_not_take() -> None:
    assert "triton" in backends()["mlstm"]
    with pytest.raises(ValueError, match=r"backend must be one of .* for these tensors, got 'triton'"):
        mlstm(*MLSTM.operands(3), backend="triton")  # float64
