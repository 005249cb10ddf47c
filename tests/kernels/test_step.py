"""Stepping a stack from its packed state: the stack's own step, whatever runs it."""

import copy
import pickle

import pytest
import torch

from tests.kernels.recurrences import needs_core
from xlstm_kernels import StackStepper, core, pack_state, unpack_state, xLSTMBlockStack, xLSTMConfig
from xlstm_kernels.compiled_step import CompiledStep
from xlstm_kernels.step import _NativeStep

CONFIGS = {
    "mLSTM + sLSTM": {"embedding_dim": 64, "num_blocks": 2, "slstm_at": (1,)},
    "small heads": {"embedding_dim": 32, "num_blocks": 3, "slstm_at": (0, 2)},
    "wide heads": {"embedding_dim": 48, "num_blocks": 2, "num_heads": 1, "slstm_at": (0,), "qkv_block_size": 48},
    "no look-back": {"embedding_dim": 16, "num_blocks": 2, "num_heads": 2, "slstm_at": (1,), "conv_kernel_size": 1},
}


def random_stack(name: str) -> xLSTMBlockStack:
    torch.manual_seed(0)
    stack = xLSTMBlockStack(xLSTMConfig(**CONFIGS[name]))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return stack


def with_other_last_bits(stack: xLSTMBlockStack) -> xLSTMBlockStack:
    """The stack with weights that differ by a rounding."""
    stack = copy.deepcopy(stack)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(1 + 2**-23 * torch.randint(-1, 2, parameter.shape))
    return stack


@needs_core
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 3, 8, 21])
@pytest.mark.parametrize("instruction_set", [0, 1, 2])
def test_the_compiled_step_is_the_stacks_step(
    name: str, batch_size: int, instruction_set: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, library = random_stack(name), core.load()
    step, exact = StackStepper(stack), _NativeStep(copy.deepcopy(stack).double())
    twins = [_NativeStep(with_other_last_bits(stack)) for _ in range(4)]
    assert isinstance(step._step, CompiledStep)
    assert library is not None
    state = step.initial_state(batch_size)
    exact_state, twin_states, errors = state.double(), [state] * len(twins), []
    library.xlstm_instruction_set(instruction_set)
    try:
        for _ in range(20):
            x, resets = torch.randn(batch_size, stack.config.embedding_dim), torch.rand(batch_size) < 0.1
            y, state = step(x, state, resets)
            expected, exact_state = exact(x.double(), exact_state, resets)
            with monkeypatch.context() as without_core:
                without_core.setattr(core, "load", lambda: None)
                stepped = [twin(x, given, resets) for twin, given in zip(twins, twin_states, strict=True)]
            twin_states = [after for _, after in stepped]
            errors.append([(output - expected).norm() for output in (y, *(output for output, _ in stepped))])
    finally:
        library.xlstm_instruction_set(-1)
    # A head norm magnifies what is rounded of a hidden state near zero: as much as the last bits of weights do.
    error, *twin_errors = torch.tensor(errors).norm(dim=0)
    assert error < 1e-5 + 4 * max(twin_errors)
    torch.testing.assert_close(state.double(), exact_state, rtol=1e-4, atol=1e-4)


CHANGES = {
    "in place": lambda block: block.down.weight.data.add_(1e-6),
    "a new parameter": lambda block: setattr(block, "skip", torch.nn.Parameter(block.skip + 1.0)),
    "other memory": lambda block: setattr(block.up.weight, "data", block.up.weight.data * 1.001),
    "another type": lambda block: block.double(),
    "another layout": lambda block: setattr(block.up.weight, "data", block.up.weight.data.T.contiguous().T),
}


@needs_core
@pytest.mark.parametrize("change", CHANGES)
def test_a_stepper_knows_whether_it_has_the_weights_of_its_stack(change: str) -> None:
    stack = random_stack("mLSTM + sLSTM")
    step = StackStepper(stack)
    assert step.follows(stack)
    assert step.follows(copy.deepcopy(stack))
    CHANGES[change](stack.blocks[0])
    assert not step.follows(stack)


def test_without_the_core_the_stack_itself_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "load", lambda: None)
    stack = random_stack("mLSTM + sLSTM")
    step = StackStepper(stack)
    assert not step.is_compiled
    assert not step.follows(stack)
    x, state = torch.randn(5, 64), step.initial_state(5)
    y, after = step(x, state)
    expected, expected_state = stack(x[:, None], stack.initial_state(5))
    torch.testing.assert_close(y, expected[:, 0])
    torch.testing.assert_close(after, pack_state(expected_state))


@pytest.mark.parametrize("dim", [24, 64])  # the first is not a multiple of 16: not compiled
def test_a_packed_state_continues_a_sequence_and_is_continued_by_one(dim: int) -> None:
    torch.manual_seed(0)
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=dim, num_blocks=2, slstm_at=(1,))).eval()
    step, x = StackStepper(stack), torch.randn(2, 30, dim)
    expected, _ = stack(x)
    _, state = stack(x[:, :10])
    packed = pack_state(state)
    for t in range(10, 20):
        y, packed = step(x[:, t], packed)
        torch.testing.assert_close(y, expected[:, t], rtol=0, atol=1e-5)
    rest, _ = stack(x[:, 20:], unpack_state(packed, like=state))
    torch.testing.assert_close(rest, expected[:, 20:], rtol=0, atol=1e-5)


def test_a_step_changes_neither_its_arguments_nor_earlier_states() -> None:
    step = StackStepper(random_stack("mLSTM + sLSTM"))
    x, state = torch.randn(4, 64), step.initial_state(4)
    x_before, state_before = x.clone(), state.clone()
    _, after = step(x, state)
    after_before = after.clone()
    step(x, after)
    assert torch.equal(x, x_before)
    assert torch.equal(state, state_before)
    assert torch.equal(after, after_before)


def test_the_weights_are_those_at_construction() -> None:
    stack = random_stack("mLSTM + sLSTM")
    step, x = StackStepper(stack), torch.randn(1, 64)
    before, _ = step(x, step.initial_state(1))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(1.0)
    after, _ = step(x, step.initial_state(1))
    assert torch.equal(before, after)
    assert not torch.allclose(before, StackStepper(stack)(x, step.initial_state(1))[0])


def test_a_reset_clears_even_what_is_not_finite() -> None:
    step = StackStepper(random_stack("mLSTM + sLSTM"))
    x = torch.randn(2, 64)
    broken = torch.full_like(step.initial_state(2), torch.nan)
    y, _ = step(x, broken, torch.tensor([True, True]))
    expected, _ = step(x, step.initial_state(2))
    torch.testing.assert_close(y, expected)


@needs_core
def test_a_stepper_is_copied_and_a_compiled_one_refuses_to_be_pickled() -> None:
    step, x = StackStepper(random_stack("mLSTM + sLSTM")), torch.randn(2, 64)
    assert step.is_compiled
    again = copy.deepcopy({"policy": step})["policy"]
    assert torch.equal(again(x, again.initial_state(2))[0], step(x, step.initial_state(2))[0])
    with pytest.raises(TypeError, match="pickle its stack, and build another"):
        pickle.dumps(step)


@pytest.mark.parametrize(
    ("x", "state", "resets", "error", "message"),
    [
        (torch.zeros(2, 64, device="meta"), None, None, ValueError, "x must be on cpu like the stepper, got meta"),
        (torch.zeros(2, 3), None, None, ValueError, r"x must be \(B, embedding_dim = 64\), got \(2, 3\)"),
        (torch.zeros(2, 1, 64), None, None, ValueError, r"x must be \(B, embedding_dim = 64\), got \(2, 1, 64\)"),
        (torch.zeros(2, 64), (), None, TypeError, "state must be a tensor, got tuple"),
        (torch.zeros(2, 64), torch.zeros(3, 4), None, ValueError, r"state must be .*got \(3, 4\)"),
        (torch.zeros(2, 64), None, torch.zeros(3, dtype=torch.bool), ValueError, r"resets must be \(B,\) = \(2,\)"),
        (torch.zeros(2, 64), None, torch.zeros(2), TypeError, "resets must be bool"),
    ],
)
def test_arguments_that_do_not_fit_are_named(x, state, resets, error, message) -> None:  # type: ignore[no-untyped-def]
    step = StackStepper(random_stack("mLSTM + sLSTM"))
    with pytest.raises(error, match=message):
        step(x, step.initial_state(2) if state is None else state, resets)
