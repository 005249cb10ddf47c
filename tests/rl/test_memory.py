"""The memory's cells: state, resets, single steps."""

import copy

import pytest
import torch

from xlstm_rl.config import MemoryConfig
from xlstm_rl.memory import build_memory

B, S, F = 3, 9, 3
CELLS = ["xlstm", "mlstm", "slstm", "lstm", "gru"]


@pytest.fixture(params=CELLS)
def memory(request):
    torch.manual_seed(0)
    return build_memory(F, MemoryConfig.from_options({"cell": request.param, "embedding_dim": 16, "num_blocks": 2}))


@pytest.fixture
def resets():
    """At the first step, in the middle, twice in a row, and in one row never."""
    resets = torch.zeros(B, S, dtype=torch.bool)
    resets[0, [0, 4, 5]] = resets[1, [2, 8]] = True
    return resets


def used(memory):
    """A state that is not empty."""
    return memory(torch.randn(B, 4, F), memory.initial_state(B))[1].detach()


def walk(memory, features, state, resets):
    outputs = []
    for t in range(features.shape[1]):
        y, state = memory(features[:, t : t + 1], state, resets[:, t : t + 1])
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def test_a_sequence_equals_its_steps(memory, resets):
    features, state = torch.randn(B, S, F), used(memory)
    whole, stepwise = memory(features, state, resets), walk(memory, features, state, resets)
    for ours, theirs in zip(whole, stepwise, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_its_first_outputs_are_smaller_than_features_of_unit_scale(memory):
    y, _ = memory(torch.randn(50, S, F), memory.initial_state(50))
    assert y.square().mean().sqrt() < 0.5


@pytest.mark.parametrize("cell", ["mlstm", "slstm"])
def test_the_scale_of_the_first_outputs_is_the_one_asked_for(cell):
    memory = build_memory(F, MemoryConfig.from_options({"cell": cell, "scale": 2.0}))
    y, _ = memory(torch.randn(50, S, F), memory.initial_state(50))
    assert 1.9 < y.square().mean().sqrt() < 2.1


def test_gradients_of_a_sequence_are_those_of_its_steps(memory, resets):
    features, state, weight = torch.randn(B, S, F), used(memory), torch.randn(B, S, 16)
    gradients = [
        torch.autograd.grad((read(features)[0] * weight).sum(), list(memory.parameters()))
        for read in (lambda x: memory(x, state, resets), lambda x: walk(memory, x, state, resets))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_reset_forgets_everything_before_it(memory, resets):
    features = torch.randn(B, S, F)
    latent, _ = memory(features, used(memory), resets)
    fresh, _ = memory(features[:1, 5:], memory.initial_state(1))
    torch.testing.assert_close(latent[:1, 5:], fresh, rtol=1e-4, atol=1e-5)


def test_no_row_reads_anothers_memory(memory, resets):
    features, state = torch.randn(B, S, F), used(memory)
    latent, after = memory(features, state, resets)
    changed = features.clone()
    changed[1, 0] += 1
    other, other_after = memory(changed, state, resets)
    torch.testing.assert_close(other[[0, 2]], latent[[0, 2]])
    torch.testing.assert_close(other_after[[0, 2]], after[[0, 2]])
    assert not torch.allclose(other[1, 0], latent[1, 0])


@torch.no_grad()
def test_a_snapshot_steps_as_the_memory_does(memory, resets):
    features, state = torch.randn(B, S, F), used(memory)
    expected = walk(memory, features, state, resets)
    with memory.stepping():
        found = walk(memory, features, state, resets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_after_a_snapshot_the_present_weights_count(memory):
    features, state = torch.randn(B, 1, F), used(memory)
    with memory.stepping():
        before, _ = memory(features, state)
    for parameter in memory.parameters():
        parameter.mul_(1.5)
    assert not torch.allclose(memory(features, state)[0], before)


def test_each_step_without_gradients_reads_the_weights_as_they_are(memory):
    features, state = torch.randn(B, 1, F), used(memory)
    with torch.no_grad():
        for _ in range(2):
            for parameter in memory.parameters():
                parameter.data.add_(0.1)  # which leaves no trace in the tensor's version
            y, after = memory(features, state)
            expected, expected_after = copy.deepcopy(memory)(torch.cat([features, features], dim=1), state)
            torch.testing.assert_close(y, expected[:, :1], rtol=1e-4, atol=1e-5)
            assert after.shape == expected_after.shape


@torch.no_grad()
def test_a_memory_that_is_not_compiled_steps_without_a_copy_of_its_weights(monkeypatch):
    monkeypatch.setattr("xlstm_rl.memory.StackStepper.__init__", lambda *_: pytest.fail("a copy was made"))
    memory = build_memory(F, MemoryConfig.from_options({"embedding_dim": 16})).double()
    features, state = torch.randn(B, 2, F, dtype=torch.float64), memory.initial_state(B)
    first, state = memory(features[:, :1], state)
    second, _ = memory(features[:, 1:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), memory(features, memory.initial_state(B))[0])


def test_a_memory_can_be_copied_while_it_steps(memory):
    with memory.stepping():
        twin = copy.deepcopy(memory)
    features = torch.randn(B, 1, F)
    torch.testing.assert_close(twin(features, used(twin))[0].shape, memory(features, used(memory))[0].shape)


def test_a_given_state_is_left_alone(memory, resets):
    state = used(memory)
    before = state.clone()
    memory(torch.randn(B, S, F), state, resets)
    assert torch.equal(state, before)
