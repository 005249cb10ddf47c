"""The stack on a CUDA device: the CPU's numbers, and no waiting for the device."""

import copy

import pytest
import torch
from torch import Tensor

from xlstm_kernels import pack_state, xLSTMBlockStack, xLSTMConfig

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
