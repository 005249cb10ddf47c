"""The sLSTM in Triton on a CUDA device: float64's numbers, the same bits twice, no compilation for new sizes.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.recurrences import Result, differentiate
from xlstm_kernels import backends, initial_slstm_state, slstm, sLSTMState

pytestmark = pytest.mark.gpu

NH = 2
# Of the norm of what is compared; float32's products are exact, bfloat16's operands are rounded at every step.
VALUE_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

each_type = pytest.mark.parametrize("dtype", VALUE_TOLERANCE, ids=["float32", "bfloat16"])
WIDTHS = [6, 24, 32, 64, 128, 200, 256, 500]  # from 129 on programs share a head
each_width = pytest.mark.parametrize("DH", WIDTHS)


@pytest.fixture(autouse=True)
def _seed_and_poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic products ask for
    torch.use_deterministic_algorithms(True)  # new tensors are full of NaN
    yield
    torch.use_deterministic_algorithms(False)


def random_operands(B: int, S: int, DH: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Gates, recurrent weight and bias, rounded to what the kernels get."""
    weight = 0.7 * DH**-0.5 * torch.randn(4, NH, DH, DH)  # more would make the recurrence chaotic
    gates = torch.randn(B, S, 4, NH, DH) + torch.tensor([0.0, 2.0, 0.0, 0.0])[:, None, None]
    return gates.to(dtype), weight.to(dtype), torch.randn(4, NH, DH).to(dtype)


def random_state(B: int, DH: int) -> sLSTMState:
    h, c, m = 0.5 * torch.randn(3, B, NH, DH)
    return sLSTMState(h, c, torch.rand(B, NH, DH) + 0.5, m)


def on_device(operands: tuple[Tensor, ...], state: sLSTMState, dtype: torch.dtype, **options: Any) -> Result:
    """Outputs, states and gradients of Triton's kernels; the state stays float32."""

    def run(*arguments: Any) -> tuple[Tensor, sLSTMState]:
        *operands, state = arguments
        state = sLSTMState(*(x.float().cuda() for x in state))
        h, last = slstm(*(x.to("cuda", dtype) for x in operands), state, backend="triton", **options)
        return h.float().cpu(), sLSTMState(*(x.cpu() for x in last))

    return differentiate(run, operands, state, dtype=torch.float32)


def assert_near(actual: Result, expected: Result, dtype: torch.dtype) -> None:
    for kind, tolerance in (("values", VALUE_TOLERANCE[dtype]), ("gradients", GRADIENT_TOLERANCE[dtype])):
        for at, (a, e) in enumerate(zip(getattr(actual, kind), getattr(expected, kind), strict=True)):
            error = (a.double() - e).norm() / e.norm().clamp(min=1e-3)
            assert error < tolerance, f"{kind}[{at}]: {error:.1e}"


@each_type
@each_width
@pytest.mark.parametrize("S", [1, 150])
def test_outputs_states_and_gradients_equal_float64(S: int, DH: int, dtype: torch.dtype) -> None:
    operands, state = random_operands(19, S, DH, dtype), initial_slstm_state(19, NH, DH)
    expected = differentiate(partial(slstm, backend="native"), operands, state)
    assert_near(on_device(operands, state, dtype), expected, dtype)


@each_type
@each_width
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exponential"])
def test_given_states_resets_lengths_and_a_bound_equal_float64(forget_gate: str, DH: int, dtype: torch.dtype) -> None:
    B, S = 19, 100
    gates, weight, bias = random_operands(B, S, DH, dtype)
    if forget_gate == "exponential":
        gates[:, :, 1] -= 4.0
    operands, state = (gates, weight, bias), random_state(B, DH)
    options: dict[str, Any] = {"forget_gate": forget_gate, "recurrent_gradient_clip": 0.5}
    resets, lengths = torch.rand(B, S) < 0.05, torch.randint(0, S + 1, (B,))
    expected = differentiate(
        partial(slstm, resets=resets, lengths=lengths, backend="native", **options), operands, state
    )
    actual = on_device(operands, state, dtype, resets=resets.cuda(), lengths=lengths.cuda(), **options)
    assert_near(actual, expected, dtype)


@pytest.mark.parametrize(("forget_gate", "f"), [("sigmoid", 12.0), ("exponential", -6e-6)])
def test_a_long_memory_stays_exact(forget_gate: str, f: float) -> None:
    gates, weight, bias = random_operands(3, 4096, 16, torch.float32)
    gates[:, :, 1], weight[1], bias[1] = f, 0.0, 0.0  # each step forgets what float32 would round to nothing
    h, _ = slstm(gates.cuda(), 0.3 * weight.cuda(), bias.cuda(), forget_gate=forget_gate, backend="triton")
    exact, _ = slstm(gates.double(), 0.3 * weight.double(), bias.double(), forget_gate=forget_gate)
    assert (h.cpu().double() - exact).abs().max() < 1e-5 * exact.abs().max()


@each_type
@pytest.mark.parametrize("DH", [32, 64, 128, 256])
def test_two_runs_agree_bit_by_bit(DH: int, dtype: torch.dtype) -> None:
    operands, state = random_operands(40, 200, DH, dtype), random_state(40, DH)
    one, two = (on_device(operands, state, dtype) for _ in range(2))
    for a, b in zip((*one.values, *one.gradients), (*two.values, *two.gradients), strict=True):
        assert torch.equal(a, b)


def test_one_wide_head_equals_float64() -> None:
    B, S, DH = 19, 40, 768
    gates, weight, bias = random_operands(B, S, DH, torch.bfloat16)
    operands, state = (gates[:, :, :, :1], weight[:, :1], bias[:, :1]), initial_slstm_state(B, 1, DH)
    expected = differentiate(partial(slstm, backend="native"), operands, state)
    assert_near(on_device(operands, state, torch.bfloat16), expected, torch.bfloat16)


@pytest.mark.parametrize("DH", [64, 256])
def test_no_kernel_is_compiled_for_a_new_batch_or_length(DH: int) -> None:
    from xlstm_kernels.ops.slstm import triton_kernels

    kernels = [getattr(triton_kernels, name) for name in triton_kernels.__all__]

    def compiled() -> int:
        return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())

    counts = []
    for B, S in [(16, 32), (1, 1), (3, 7), (17, 48), (400, 3)]:  # the last: more programs than fit at once
        on_device(random_operands(B, S, DH, torch.bfloat16), random_state(B, DH), torch.bfloat16)
        counts.append(compiled())
    assert counts == counts[:1] * len(counts)


def test_auto_takes_triton_for_what_it_serves() -> None:
    gates, weight, bias = (x.cuda() for x in random_operands(3, 5, 32, torch.float32))
    assert backends()["slstm"][-1] == "triton"
    assert torch.equal(slstm(gates, weight, bias)[0], slstm(gates, weight, bias, backend="triton")[0])
    h, _ = slstm(gates.double(), weight.double(), bias.double())
    assert h.dtype == torch.float64
    wide, weight = torch.randn(2, 3, 4, 1, 1100).cuda(), 0.01 * torch.randn(4, 1, 1100, 1100).cuda()
    assert torch.equal(slstm(wide, weight)[0], slstm(wide, weight, backend="native")[0])


def test_autocast_takes_the_products_in_its_type_and_keeps_the_state_in_float32() -> None:
    gates, weight, bias = (x.cuda() for x in random_operands(3, 20, 32, torch.float32))
    weight.requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        h, last = slstm(gates.bfloat16(), weight, bias)
    expected, _ = slstm(gates.bfloat16(), weight.bfloat16(), bias)
    assert torch.equal(h, expected)
    assert {x.dtype for x in last} == {torch.float32}
    (dweight,) = torch.autograd.grad(h.float().square().sum(), weight)
    assert dweight.dtype == torch.float32


@pytest.mark.parametrize("types", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize("DH", [32, 128])
def test_gates_and_weights_of_two_types_keep_their_own(DH: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    gates, weight, bias = random_operands(5, 30, DH, torch.bfloat16)
    leaves = [x.to("cuda", dtype).requires_grad_() for x, dtype in zip((gates, weight), types, strict=True)]
    h, _ = slstm(*leaves, bias.cuda(), backend="triton")
    exact, _ = slstm(gates.double(), weight.double(), bias.double())
    assert (h.double().cpu() - exact).norm() < VALUE_TOLERANCE[torch.bfloat16] * exact.norm()
    gradients = torch.autograd.grad(h.float().sum(), leaves)
    assert (h.dtype, *(x.dtype for x in gradients)) == (types[0], *types)


@pytest.mark.parametrize("DH", [64, 256])
def test_a_graph_of_the_device_replays_a_pass_in_both_directions(DH: int) -> None:
    operands = [x.cuda().requires_grad_() for x in random_operands(16, 64, DH, torch.bfloat16)]

    def step() -> tuple[Tensor, ...]:
        h, _ = slstm(*operands, backend="triton")
        return h, *torch.autograd.grad(h.float().square().sum(), operands)

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # not the default one, which the leaves' gradients would then wait for
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
