"""The recurrences as operators of PyTorch: registered rightly, traced as one node, exported, sober under autocast."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.kernels.recurrences import (
    DH,
    DK,
    DV,
    FORWARD_TOLERANCE,
    MLSTM,
    NH,
    RECURRENCES,
    SLSTM,
    B,
    Recurrence,
    differentiate,
    needs_core,
)
from xlstm_kernels import mlstm, mLSTMState, slstm, sLSTMState

of_each = pytest.mark.parametrize("op", RECURRENCES, ids=lambda op: op.name)
operators = torch.ops.xlstm_kernels


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()


def random_resets(S: int) -> Tensor:
    return torch.rand(B, S) < 0.2


def check_operator(name: str, inputs: tuple[Tensor, ...], options: tuple, *, num_saved: int, record: bool) -> list:
    """opcheck ``name``; return its outputs, of which all from ``num_saved`` on are its tape."""
    operator = getattr(operators, name).default
    torch.library.opcheck(operator, (*(x.requires_grad_(record) for x in inputs), *options, record))
    outputs = operator(*(x.detach() for x in inputs), *options, record)
    assert all((x.numel() > 0) == record for x in outputs[num_saved:])
    return list(outputs)


@pytest.mark.parametrize("record", [True, False], ids=["recording", "not recording"])
@pytest.mark.parametrize("with_resets", [True, False], ids=["resets", "no resets"])
def test_the_chunkwise_operators_are_registered_rightly(with_resets: bool, record: bool) -> None:
    heads, S, L = (NH, 13, 8) if with_resets else (1, 8, 8)  # the latter could be passed on without a copy
    shapes = [(B, S, heads, DK), (B, S, heads, DK), (B, S, heads, DV), (B, S, heads), (B, S, heads)]
    inputs = [torch.randn(shape) for shape in (*shapes, (B, heads, DK, DV), (B, heads, DK), (B, heads))]
    resets = random_resets(S) if with_resets else None
    outputs = check_operator("mlstm_chunkwise", inputs, (resets, L, with_resets), num_saved=4, record=record)
    if record:
        h, c, n, _, *tape = outputs
        torch.library.opcheck(operators.mlstm_chunkwise_backward.default, (h, c, n, resets, *tape))


@pytest.mark.parametrize("record", [True, False], ids=["recording", "not recording"])
@pytest.mark.parametrize("with_flags", [True, False], ids=["resets and lengths", "neither"])
@pytest.mark.parametrize("name", ["slstm_native", pytest.param("slstm_compiled", marks=needs_core)])
def test_the_operators_of_the_slstm_are_registered_rightly(name: str, with_flags: bool, record: bool) -> None:
    S = 7
    width = DH if with_flags else 16  # the latter is handed on as it is
    shapes = [(B, S, 4, NH, width), (4, NH, width, width), (4, NH, width), (4, B, NH, width)]
    inputs = [torch.randn(shape) for shape in shapes]
    resets, lengths = (random_resets(S), torch.tensor([S, 3])) if with_flags else (None, None)
    resets = resets & (torch.arange(S) < lengths[:, None]) if with_flags else None
    options = (resets, lengths, with_flags, 0.1 if with_flags else None)
    h, last, tape = check_operator(name, inputs, options, num_saved=2, record=record)
    if record:
        saved = (inputs[1].detach(), inputs[3].detach(), h.clone(), tape)
        torch.library.opcheck(getattr(operators, f"{name}_backward").default, (h, last, *saved, *options))


@of_each
@pytest.mark.parametrize("S", [20, 1], ids=["sequence", "step"])
def test_compiled_graphs_give_what_eager_calls_give(op: Recurrence, S: int) -> None:
    operands, state, resets = op.operands(S), op.state(), random_resets(S)
    lengths = torch.tensor([S, S // 2])
    run = lambda *x: op.entry(*x, resets=resets, lengths=lengths, padding="left")  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    actual, expected = (differentiate(f, operands, state, dtype=op.finest) for f in (compiled, run))
    for a, e in zip(actual.values + actual.gradients, expected.values + expected.gradients, strict=True):
        torch.testing.assert_close(a, e)


@of_each
def test_one_graph_serves_sequences_of_many_lengths(op: Recurrence) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op.entry, fullgraph=True, backend=counter, dynamic=True)
    for S in (20, 33, 47, 90):
        operands = op.operands(S)
        torch.testing.assert_close(compiled(*operands)[0], op.entry(*operands)[0])
    assert counter.frame_count == 1


class Step(nn.Module):
    """One step with the state as plain tensors, as a server would call it."""

    def __init__(self, op: Callable, state_type: type) -> None:
        super().__init__()
        self.op, self.state_type = op, state_type

    def forward(self, operands: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, last = self.op(*operands, state=self.state_type(*state))
        return h, tuple(last)


@pytest.mark.parametrize(
    ("op", "entry", "state_type"), [(MLSTM, mlstm, mLSTMState), (SLSTM, slstm, sLSTMState)], ids=["mlstm", "slstm"]
)
def test_a_step_can_be_exported(op: Recurrence, entry: Callable, state_type: type) -> None:
    step = Step(entry, state_type)
    operands, state = (tuple(x.float() for x in tree) for tree in (op.operands(1), op.state()))
    exported = torch.export.export(step, (operands, state)).module()
    h, last = exported(operands, state)
    h_expected, last_expected = step(operands, state)
    assert torch.equal(h, h_expected)
    assert all(torch.equal(x, y) for x, y in zip(last, last_expected, strict=True))


@needs_core
def test_tracing_takes_the_core_as_eager_calls_do() -> None:
    step = Step(slstm, sLSTMState)
    operands, state = (tuple(x.float() for x in tree) for tree in (SLSTM.operands(9), SLSTM.state()))
    targets = {node.target for node in torch.export.export(step, (operands, state)).graph.nodes}
    assert operators.slstm_compiled.default in targets


@of_each
@pytest.mark.parametrize("S", [20, 1], ids=["sequence", "step"])
def test_autocast_changes_nothing_inside_and_the_outputs_type_alone(op: Recurrence, S: int) -> None:
    operands = tuple(x.float() for x in op.operands(S))
    state = type(op.state())(*(x.float() for x in op.state()))
    first, *others = operands
    half = (
        (*(x.bfloat16() for x in operands[:3]), *operands[3:]) if op.num_sequences > 1 else (first.bfloat16(), *others)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, last = op.entry(*operands, state)
        h_half, last_half = op.entry(*half, state)
    h_outside, last_outside = op.entry(*operands, state)
    assert torch.equal(h, h_outside)
    assert all(torch.equal(x, y) for x, y in zip(last, last_outside, strict=True))
    assert h_half.dtype == torch.bfloat16
    assert {x.dtype for x in last_half} == {torch.float32}


@of_each
def test_a_backward_pass_under_autocast_is_as_exact_as_outside(op: Recurrence) -> None:
    operands, state = op.operands(20), op.state()
    expected = differentiate(op.entry, operands, state, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = differentiate(op.entry, operands, state, dtype=torch.float32)
    for a, e in zip(actual.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=FORWARD_TOLERANCE[torch.float32] * e.abs().max().item())


@of_each
def test_a_second_derivative_is_refused(op: Recurrence) -> None:
    operands = tuple(x.requires_grad_() for x in op.operands(5))
    h, _ = op.entry(*operands)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(h.sum(), operands, create_graph=True)


@pytest.mark.parametrize("op", [MLSTM, SLSTM], ids=lambda op: op.name)
def test_a_backward_pass_frees_the_tape_while_its_outputs_live_on(op: Recurrence) -> None:
    operands = tuple(x.requires_grad_() for x in op.operands(20))
    h, _ = op.entry(*operands)
    assert len(h.grad_fn.saved_tensors) > 3
    h.sum().backward()
    with pytest.raises(RuntimeError, match="freed"):
        _ = h.grad_fn.saved_tensors
