"""Whole blocks on a CUDA device: as exact as in PyTorch, the same bits twice; steps in a graph: the stack's own."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from xlstm_kernels import (
    StackStepper,
    fused,
    map_state,
    mLSTMBlock,
    pack_state,
    sLSTMBlock,
    unpack_state,
    xLSTMBlockStack,
    xLSTMConfig,
)
from xlstm_kernels.state import state_leaves

pytestmark = pytest.mark.gpu

BLOCKS = {
    "mlstm": partial(mLSTMBlock, 64, 2),
    "mlstm, odd widths": partial(mLSTMBlock, 60, 3, qkv_block_size=3, conv_kernel_size=6),
    "mlstm, no skip": partial(mLSTMBlock, 32, 1, learnable_skip=False, input_gate="sigmoid"),
    "slstm": partial(sLSTMBlock, 128, 4),
    "slstm, odd widths": partial(sLSTMBlock, 66, 3, conv_kernel_size=2),
}
# Of the norm of what is compared, beyond twice PyTorch's own error: in float32, and with products in bfloat16.
TOLERANCE = {False: 2e-5, True: 1e-2}


def random_block(name: str) -> nn.Module:
    torch.manual_seed(0)
    block = BLOCKS[name]().cuda()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block


def differentiate(
    block: nn.Module, x: Tensor, state: tuple, resets: Tensor | None, dtype: torch.dtype, half: bool
) -> list[Tensor]:
    """Outputs, state, and all gradients of a random linear function of both."""
    block = copy.deepcopy(block).to(dtype)
    x = x.to(dtype).requires_grad_()
    state = map_state(lambda leaf: leaf.to(dtype).requires_grad_(), state)
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        y, after = block(x, state, resets)
    values, probe = [y, *state_leaves(after)[:-1]], torch.Generator("cuda").manual_seed(1)
    loss = sum((v.double() * torch.randn(v.shape, generator=probe, device="cuda").double()).sum() for v in values)
    leaves = [x, *state_leaves(state)[:-1], *block.parameters()]
    return [*(v.detach() for v in values), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("half", TOLERANCE, ids=["float32", "autocast"])
@pytest.mark.parametrize("S", [1, 63, 200])
@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_as_exact_as_in_pytorch_and_gives_the_same_bits_twice(
    name: str, with_resets: bool, S: int, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = random_block(name)
    x = torch.randn(5, S, block.norm.weight.numel(), device="cuda")
    assert fused.runs_conv(x, block.conv.kernel_size)
    state = map_state(torch.randn_like, block.initial_state(5))
    if isinstance(block, sLSTMBlock):
        state = state._replace(cell=state.cell._replace(n=state.cell.n.abs() + 0.5))
    resets = torch.rand(5, S, device="cuda") < 0.1 if with_resets else None
    expected = differentiate(block, x, state, resets, torch.float64, False)  # float64 runs in PyTorch
    actual, again = (differentiate(block, x, state, resets, torch.float32, half) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
    for name in ("runs_conv", "runs_norm"):
        monkeypatch.setattr(fused, name, lambda *_: False)
    twin = differentiate(block, x, state, resets, torch.float32, half)
    for a, t, e in zip(actual, twin, expected, strict=True):
        allowed = 2 * (t.double() - e).norm() + TOLERANCE[half] * e.norm().clamp(min=1.0)  # the head norm cancels n's
        assert (a.double() - e).norm() <= allowed


def test_new_sizes_compile_no_kernel_of_a_block_anew() -> None:
    from xlstm_kernels.fused.conv import triton_kernels as conv_kernels
    from xlstm_kernels.fused.norm import triton_kernels as norm_kernels

    kernels = (
        conv_kernels.conv_forward,
        conv_kernels.conv_backward_steps,
        conv_kernels.conv_backward_inputs,
        norm_kernels.norm_forward,
        norm_kernels.norm_backward,
    )
    block = random_block("mlstm")

    def run(B: int, S: int) -> list[int]:
        block(torch.randn(B, S, 64, device="cuda"))[0].sum().backward()
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    before = run(2, 64)
    assert min(before) > 0
    for B, S in [(1, 1), (1, 77), (16, 16), (5, 1001)]:
        assert run(B, S) == before


@pytest.fixture(params=[(), (1,)], ids=["mLSTM", "mLSTM + sLSTM"])
def stack(request: pytest.FixtureRequest) -> xLSTMBlockStack:
    torch.manual_seed(0)
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=64, num_blocks=2, slstm_at=request.param)).cuda().eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stack


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_a_step_in_a_graph_is_the_stacks_step_bit_by_bit(stack: xLSTMBlockStack, half: bool) -> None:
    step, form = StackStepper(stack), stack.initial_state(1)
    for batch_size in (3, 8, 3):
        state = eager_state = step.initial_state(batch_size)
        for t in range(6):
            x, resets = torch.randn(batch_size, 64, device="cuda"), torch.rand(batch_size, device="cuda") < 0.3
            resets = resets if t % 3 else None  # both kinds of call, in turn
            expected_resets = torch.zeros(batch_size, 1, dtype=torch.bool, device="cuda")
            expected_resets = expected_resets if resets is None else resets[:, None]
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half):
                y, state = step(x, state, resets)
                expected, after = stack(x[:, None], unpack_state(eager_state, like=form), expected_resets)
            eager_state = pack_state(after)
            assert torch.equal(y, expected[:, 0])
            assert torch.equal(state, eager_state)


def test_states_that_a_graph_returned_are_values(stack: xLSTMBlockStack) -> None:
    step, (x, x_next) = StackStepper(stack), torch.randn(2, 4, 64, device="cuda")
    y, state = step(x, step.initial_state(4))
    kept, kept_y = state.clone(), y.clone()
    y_next, after = step(x_next, state)
    assert torch.equal(state, kept)
    assert torch.equal(y, kept_y)
    assert torch.equal(step(x_next, kept)[0], y_next)  # an earlier state, by value
    after[0].zero_()  # a state that was written to is read anew
    fresh, _ = step(x, after)
    assert torch.equal(fresh, step(x, after.clone())[0])
    with torch.inference_mode():
        assert torch.equal(step(x_next, kept)[0], y_next)
    assert torch.equal(step(x_next, kept)[0], y_next)


def test_compiled_blocks_are_one_graph_with_the_eager_results(stack: xLSTMBlockStack) -> None:
    x, resets = torch.randn(3, 20, 64, device="cuda"), torch.rand(3, 20, device="cuda") < 0.1
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    parameters = list(stack.parameters())
    expected, actual = (run(x, None, resets)[0] for run in (stack, compiled))
    torch.testing.assert_close(actual, expected)
    gradients = (torch.autograd.grad(y.square().sum(), parameters) for y in (actual, expected))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
