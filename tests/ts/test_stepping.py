"""Single tokens are stepped at the least cost, with the weights that the stack has at that moment."""

import copy
import pickle

import torch

from xlstm_kernels import xLSTMBlockStack, xLSTMConfig
from xlstm_ts.stepping import SteppingStack

CONFIG = xLSTMConfig(embedding_dim=32, num_blocks=2, num_heads=2, slstm_at=(0, 1))


def make_stack() -> xLSTMBlockStack:
    torch.manual_seed(0)
    return xLSTMBlockStack(CONFIG).eval()


@torch.inference_mode()
def step_by_step(
    stepping: SteppingStack, inputs: torch.Tensor, afresh: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, state = [], stepping.initial_state(len(inputs))
    for token in range(inputs.shape[1]):
        part = slice(token, token + 1)
        output, state = stepping(inputs[:, part], state, afresh[:, part])
        outputs.append(output)
    return torch.cat(outputs, 1), state


def test_steps_equal_the_whole_sequence() -> None:
    stepping, inputs = SteppingStack(make_stack()), torch.randn(3, 9, 32)
    afresh = torch.zeros(3, 9, dtype=torch.bool)
    afresh[1, 4] = True

    with torch.inference_mode():
        whole = stepping(inputs, stepping.initial_state(3), afresh)

    torch.testing.assert_close(step_by_step(stepping, inputs, afresh), whole, rtol=1e-5, atol=1e-5)


def test_a_step_follows_weights_that_change_in_place() -> None:
    stack = make_stack()
    stepping, inputs, afresh = SteppingStack(stack), torch.randn(2, 1, 32), torch.zeros(2, 1, dtype=torch.bool)
    before, _ = step_by_step(stepping, inputs, afresh)

    stack.blocks[0].ffn.down.weight.data.neg_()

    after, _ = step_by_step(stepping, inputs, afresh)
    expected, _ = stack(inputs)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)


def test_a_step_leaves_gradients_where_they_are_wanted() -> None:
    stack = make_stack()
    stepping, inputs = SteppingStack(stack), torch.randn(2, 1, 32, requires_grad=True)

    stepping(inputs, stepping.initial_state(2), torch.zeros(2, 1, dtype=torch.bool))[0][..., 0].sum().backward()

    assert inputs.grad is not None
    assert inputs.grad.any()


def test_it_is_copied_and_pickled_after_a_step() -> None:
    stack = make_stack()
    stepping, inputs, afresh = SteppingStack(stack), torch.randn(2, 1, 32), torch.zeros(2, 1, dtype=torch.bool)
    expected = step_by_step(stepping, inputs, afresh)

    for twin in (copy.deepcopy(stepping), pickle.loads(pickle.dumps(stepping))):
        torch.testing.assert_close(step_by_step(twin, inputs, afresh), expected, rtol=0, atol=0)
