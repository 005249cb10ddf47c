"""Stacks in bfloat16, by autocast or throughout: states stay float32, outputs stay near those of float32."""

import pytest
import torch

from tests.kernels.stacks import STACKS, D, small_config
from xlstm_kernels import xLSTMBlockStack
from xlstm_kernels.state import state_leaves

# Relative root mean square, measured up to 0.008; bfloat16 keeps 8 bits, and two blocks round some twenty times.
TOLERANCE = 0.02
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=STACKS.values(), ids=STACKS)
def stack(request: pytest.FixtureRequest) -> xLSTMBlockStack:
    torch.manual_seed(0)
    return xLSTMBlockStack(small_config(**request.param))


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual.float() - expected).norm() < TOLERANCE * expected.norm()


@pytest.mark.parametrize("S", [1, 9], ids=["step", "sequence"])
def test_autocast_keeps_states_and_gradients_in_float32_and_outputs_near(stack: xLSTMBlockStack, S: int) -> None:
    x, resets = torch.randn(2, S, D), torch.rand(2, S) < 0.2
    lengths = torch.tensor([S, S // 2])
    expected, _ = stack(x, resets=resets, lengths=lengths)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = stack(x, resets=resets, lengths=lengths)
        y, state = stack(x, stack.initial_state(2), resets, lengths=lengths)
    y.float().square().sum().backward()
    assert_near(y, expected)
    assert {leaf.dtype for leaf in state_leaves(state)} == {torch.float32}
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in stack.parameters())


def test_weights_in_bfloat16_keep_states_in_float32_and_outputs_near(stack: xLSTMBlockStack) -> None:
    stack = stack.bfloat16()
    x = torch.randn(2, 9, D).bfloat16()
    y, state = stack(x)
    y_next, state = stack(x[:, :1], state)
    y_next.float().square().sum().backward()
    assert y.dtype == y_next.dtype == torch.bfloat16
    assert {leaf.dtype for leaf in state_leaves(state)} == {torch.float32}
    assert_near(y, stack.float()(x.float())[0])


def test_inputs_in_bfloat16_are_normalised_in_float32(stack: xLSTMBlockStack) -> None:
    x = torch.randn(2, 9, D)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = stack(x.bfloat16())
    assert_near(y, stack(x)[0])
