"""On a CUDA device: the stack gives the CPU's numbers and waits for nothing, the mLSTM's kernels equal float64."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from xlstm_kernels import backends, mlstm, mLSTMState, pack_state, xLSTMBlockStack, xLSTMConfig

pytestmark = pytest.mark.gpu

# Of the largest entry, outputs, states and gradients of three blocks; the CPU's own float32 is off by 6e-5.
TOLERANCE = {torch.float64: 4e-13, torch.float32: 5e-4}


@pytest.fixture
def stack() -> xLSTMBlockStack:
    torch.manual_seed(0)
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=64, num_blocks=3, slstm_at=(1,))).double()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return stack


def run(stack: xLSTMBlockStack, x: Tensor, resets: Tensor, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Outputs, state after the sequence, and every parameter's gradient."""
    stack, x, resets = copy.deepcopy(stack).to(device, dtype), x.to(device, dtype), resets.to(device)
    y, state = stack(x, resets=resets)
    y.square().sum().backward()
    return [tensor.detach().cpu().double() for tensor in (y, pack_state(state), *(p.grad for p in stack.parameters()))]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs_states_and_gradients_equal_the_cpu(stack: xLSTMBlockStack, dtype: torch.dtype) -> None:
    x, resets = torch.randn(4, 150, 64, dtype=torch.float64), torch.rand(4, 150) < 0.05
    expected = run(stack, x, resets, "cpu", torch.float64)
    for a, e in zip(run(stack, x, resets, "cuda", dtype), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=TOLERANCE[dtype] * e.abs().max().item())


def test_neither_a_step_nor_a_sequence_waits_for_the_device(stack: xLSTMBlockStack) -> None:
    stack = stack.float().cuda()
    state, step, sequence = stack.initial_state(8), torch.randn(8, 1, 64).cuda(), torch.randn(8, 40, 64).cuda()
    resets = torch.zeros(8, 40, dtype=torch.bool, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            _, state = stack(step, state)
            y, _ = stack(sequence, state, resets)  # a wait raises here
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert y.isfinite().all()


# Heads x head dims of practice, sequences cut short, and sizes that are no multiple of anything.
MLSTM_SHAPES = [
    (4, 128, 4, 32, 32),
    (2, 512, 4, 64, 64),
    (2, 500, 2, 128, 128),
    (2, 333, 2, 24, 40),
    (1, 190, 1, 128, 512),
    (1, 333, 2, 256, 256),
    (1, 200, 1, 512, 40),
    (1, 4100, 2, 64, 64),
    (1, 2200, 3, 32, 16),
]
# Of the norm; what is rounded of scores, states and gradients between products adds up.
MLSTM_TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}

needs_triton = pytest.mark.skipif("triton" not in backends()["mlstm"], reason="Triton is not installed")


def mlstm_arguments(
    B: int, S: int, NH: int, DK: int, DV: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], mLSTMState]:
    """Operands that remember for about fifty steps, in the values of ``dtype``, and a state.

    Queries, keys and n are positive: a denominator that cancels makes gradients a hundred times as sensitive to a last
    bit as they are otherwise.
    """
    torch.manual_seed(0)
    shapes = [(B, S, NH, DK), (B, S, NH, DK), (B, S, NH, DV), (B, S, NH), (B, S, NH)]
    q, k, v, i, f = (torch.randn(shape) for shape in shapes)
    operands = tuple(x.to("cuda", dtype) for x in (q.abs(), k.abs(), v, i, f + 4))
    state = mLSTMState(torch.randn(B, NH, DK, DV), torch.randn(B, NH, DK).abs(), torch.randn(B, NH))
    return operands, mLSTMState(*(x.cuda() for x in state))


def differentiated(
    operands: tuple[Tensor, ...], state: mLSTMState, dtype: torch.dtype, **options: object
) -> list[Tensor]:
    """Outputs, last state and gradients of a random linear function of both."""
    operands = tuple(x.to(dtype, copy=True).requires_grad_() for x in operands)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    *memory, m = (x.to(state_dtype, copy=True) for x in state)
    memory = [x.requires_grad_() for x in memory]
    h, last = mlstm(*operands, mLSTMState(*memory, m), **options)
    generator = torch.Generator("cuda").manual_seed(1)
    probes = [torch.randn(x.shape, generator=generator, device="cuda").bfloat16() for x in (h, last.c, last.n)]
    loss = sum((x * p.to(x.dtype)).sum(dtype=state_dtype) for x, p in zip((h, last.c, last.n), probes, strict=True))
    return [h.detach(), *(x.detach() for x in last), *torch.autograd.grad(loss, [*operands, *memory])]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every fresh tensor holds NaN, so that what a kernel leaves out shows."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(5, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@needs_triton
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.parametrize("dtype", MLSTM_TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", MLSTM_SHAPES, ids=str)
def test_mlstm_kernels_equal_float64_and_repeat_bit_for_bit(
    shape: tuple[int, ...], dtype: torch.dtype, with_resets: bool, normalize: bool
) -> None:
    operands, state = mlstm_arguments(*shape, dtype)
    options = {"resets": torch.rand(shape[:2], device="cuda") < 0.02 if with_resets else None, "normalize": normalize}
    expected = differentiated(operands, state, torch.float64, backend="native", **options)
    actual = differentiated(operands, state, dtype, backend="triton", **options)
    # Of a first state long forgotten the gradient is too small for float32.
    errors = [((a.double() - e).norm() / (e.norm() + 1e-30)).item() for a, e in zip(actual, expected, strict=True)]
    assert max(errors) <= MLSTM_TOLERANCE[dtype], errors
    again = differentiated(operands, state, dtype, backend="triton", **options)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))


@needs_triton
@pytest.mark.parametrize("D", [32, 64, 128, 256])
def test_a_new_batch_size_or_length_compiles_no_mlstm_kernel_anew(D: int) -> None:
    from xlstm_kernels.ops.mlstm import triton_kernels

    kernels = [getattr(triton_kernels, name) for name in triton_kernels.__all__]

    def compiled() -> list[int]:
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    def run(B: int, S: int) -> None:
        differentiated(*mlstm_arguments(B, S, 4, D, D, torch.bfloat16), torch.bfloat16, backend="triton")

    run(2, 128)
    before = compiled()
    assert sum(before) > 0
    for B, S in [(1, 1), (3, 77), (16, 16), (5, 1001)]:
        run(B, S)
    assert compiled() == before


@needs_triton
def test_auto_runs_the_kernels_for_all_but_float64() -> None:
    operands, state = mlstm_arguments(2, 40, 2, 32, 32, torch.float32)
    assert torch.equal(mlstm(*operands, state)[0], mlstm(*operands, state, backend="triton")[0])
    exact = [x.double() for x in operands]
    assert torch.equal(mlstm(*exact)[0], mlstm(*exact, backend="native")[0])


@needs_triton
def test_a_captured_graph_replays_forward_and_backward_of_the_kernels() -> None:
    operands, state = mlstm_arguments(2, 128, 4, 64, 64, torch.bfloat16)
    leaves = [x.requires_grad_() for x in operands]

    def step() -> tuple[Tensor, ...]:
        h, _ = mlstm(*leaves, state, backend="triton")
        return h, *torch.autograd.grad(h.float().sum(), leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
