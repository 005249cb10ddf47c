"""What holds for the scalar memory alone: its recurrent gradient's bound, and the C core."""

import os
import subprocess
import sys

import pytest
import torch

from tests.kernels.recurrences import SLSTM, SLSTM_COMPILED, Recurrence, assert_close, differentiate, needs_core
from xlstm_kernels import core, initial_slstm_state, slstm

each_backend = pytest.mark.parametrize(
    "op", [SLSTM, pytest.param(SLSTM_COMPILED, marks=needs_core)], ids=lambda op: op.name
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@each_backend
@pytest.mark.parametrize("bound", [1e-3, 0.1, 1e3])
def test_bounded_recurrent_gradients_equal_the_reference(op: Recurrence, bound: float) -> None:
    operands, state, resets = op.operands(40), op.state(), torch.rand(2, 40) < 0.1
    expected = differentiate(
        lambda *x: op.reference(*x, resets, recurrent_gradient_clip=bound), operands, state, dtype=torch.float64
    )
    actual = differentiate(
        lambda *x: op.entry(*x, resets=resets, recurrent_gradient_clip=bound), operands, state, dtype=op.finest
    )
    assert_close(actual, expected, op.finest)


@each_backend
def test_the_bound_holds_for_what_reaches_the_given_hidden_state(op: Recurrence) -> None:
    operands, state = op.operands(20), op.state()
    h0 = len(operands)  # the first of the state's gradients
    exact = differentiate(op.entry, operands, state, dtype=op.finest).gradients[h0]
    bounded = differentiate(lambda *x: op.entry(*x, recurrent_gradient_clip=0.05), operands, state, dtype=op.finest)
    assert exact.abs().max() > 0.05
    assert bounded.gradients[h0].abs().max() <= 0.05


@each_backend
def test_without_recurrent_weights_the_bound_changes_nothing(op: Recurrence) -> None:
    gates, weight, bias = op.operands(20)
    operands, state = (gates, torch.zeros_like(weight), bias), op.state()
    exact = differentiate(op.entry, operands, state, dtype=op.finest)
    bounded = differentiate(lambda *x: op.entry(*x, recurrent_gradient_clip=1e-9), operands, state, dtype=op.finest)
    assert_close(bounded, exact, op.finest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget_gate": "tanh"}, r"forget_gate must be one of \('sigmoid', 'exponential'\), got 'tanh'"),
        ({"recurrent_gradient_clip": -1.0}, "recurrent_gradient_clip must be > 0 and finite, got -1.0"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SLSTM.entry(*SLSTM.operands(3), **options)


@pytest.fixture(params=[0, 1, 2], ids=["portable", "AVX2", "AVX-512"])
def instruction_set(request: pytest.FixtureRequest):
    if core.load().xlstm_instruction_set(request.param) != request.param:
        pytest.skip("this processor does not have it")
    yield
    core.load().xlstm_instruction_set(-1)


def operands(batch_size: int, S: int, NH: int, DH: int, dtype: torch.dtype = torch.float32) -> tuple:
    shapes = ((batch_size, S, 4, NH, DH), (4, NH, DH, DH), (4, NH, DH))
    return tuple(scale * torch.randn(shape, dtype=dtype) for scale, shape in zip((2, 0.3, 1), shapes, strict=True))


@needs_core
@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize(("batch_size", "NH", "DH"), [(1, 1, 16), (3, 2, 24), (5, 1, 48), (9, 3, 1), (17, 2, 64)])
@pytest.mark.parametrize(
    "options", [{}, {"forget_gate": "exponential", "recurrent_gradient_clip": 0.5}], ids=["", "options"]
)
def test_every_instruction_set_is_right_at_any_size(batch_size: int, NH: int, DH: int, options: dict) -> None:
    arguments, resets = operands(batch_size, 11, NH, DH), torch.rand(batch_size, 11) < 0.1
    state = initial_slstm_state(batch_size, NH, DH)
    expected = differentiate(lambda *x: SLSTM_COMPILED.reference(*x, resets, **options), arguments, state)
    actual = differentiate(
        lambda *x: slstm(*x, resets=resets, backend="compiled", **options), arguments, state, dtype=torch.float32
    )
    assert_close(actual, expected, torch.float32)


@needs_core
@pytest.mark.usefixtures("instruction_set")
def test_nan_in_a_gate_reaches_the_output() -> None:
    for gate in range(4):
        gates, weight, bias = operands(2, 5, 1, 16)
        gates[0, 3, gate, 0, 2] = torch.nan
        h, _ = slstm(gates, weight, bias, backend="compiled")
        assert h[0, 3:, 0, 2].isnan().all()
        assert h[1].isfinite().all()


@needs_core
def test_the_number_of_threads_changes_no_bit() -> None:
    arguments = operands(20, 30, 2, 16)
    threads = torch.get_num_threads()
    one, _ = slstm(*arguments, backend="compiled")
    torch.set_num_threads(2)
    two, _ = slstm(*arguments, backend="compiled")
    torch.set_num_threads(threads)
    assert torch.equal(one, two)


FORK = """
import os, signal, torch
from xlstm_kernels import slstm
arguments = torch.randn(4, 8, 4, 2, 16), torch.randn(4, 2, 16, 16)
torch.set_num_threads(2)
slstm(*arguments, backend="compiled")  # starts the threads that the child will lack
child = os.fork()
if child == 0:
    signal.alarm(10)  # ends a child that waits for them
    torch.set_num_threads(1)  # as torch's own DataLoader does in its workers
    slstm(*arguments, backend="compiled")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@needs_core
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_worker_does_not_wait_for_threads_it_lacks() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", FORK], env=environment, check=True, timeout=60)


@needs_core
def test_auto_takes_the_core_and_leaves_float64_to_pytorch() -> None:
    gates, weight, bias = operands(2, 5, 2, 16)
    assert torch.equal(slstm(gates, weight, bias)[0], slstm(gates, weight, bias, backend="compiled")[0])
    assert slstm(gates.double(), weight.double(), bias.double())[0].dtype == torch.float64
    with pytest.raises(ValueError, match=r"one of \('auto', 'native'\) for these tensors, got 'compiled'"):
        slstm(gates.double(), weight.double(), bias.double(), backend="compiled")
