"""Compiled and exported stacks: one graph, with the outputs, states and gradients of the eager ones.

Shapes: B batch, S sequence, D embedding dim.
"""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export
from torch.utils._pytree import tree_map

from xlstm_kernels import StackState, xLSTMBlockStack, xLSTMConfig
from xlstm_kernels.state import state_leaves

B, D = 3, 16
CONFIGS = {
    "mLSTM": xLSTMConfig(embedding_dim=D, num_blocks=2, num_heads=2),
    "mixed": xLSTMConfig(embedding_dim=D, num_blocks=2, num_heads=2, slstm_at=(1,)),
    "one head": xLSTMConfig(embedding_dim=D, num_blocks=2, num_heads=1, slstm_at=(1,)),
    "7B": xLSTMConfig(embedding_dim=D, num_blocks=1, num_heads=2, mlstm_block="7b"),
    "TiRex": xLSTMConfig(embedding_dim=D, num_blocks=1, num_heads=2, slstm_at=(0,), slstm_block="tirex"),
}
Result = tuple[Tensor, StackState, list[Tensor]]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def stack(request: pytest.FixtureRequest) -> xLSTMBlockStack:
    torch.manual_seed(0)
    return xLSTMBlockStack(request.param)


def example(stack: xLSTMBlockStack, S: int) -> tuple[Tensor, StackState, Tensor]:
    """Inputs, the state after some steps, and resets."""
    with torch.no_grad():
        _, state = stack(torch.randn(B, 4, D))
    resets = torch.zeros(B, S, dtype=torch.bool)
    resets[0, S // 2] = True
    return torch.randn(B, S, D), state, resets


def differentiate(run: torch.nn.Module, stack: xLSTMBlockStack, *arguments: object) -> Result:
    y, state = run(*arguments)
    loss = y.square().sum() + sum(leaf.sum() for block in state for leaf in (block.conv, *block.cell[:-1]))
    return y, state, list(torch.autograd.grad(loss, list(stack.parameters())))


def assert_close(actual: Result, expected: Result) -> None:
    for a, e in zip(
        [actual[0], *state_leaves(actual[1]), *actual[2]],
        [expected[0], *state_leaves(expected[1]), *expected[2]],
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("S", [1, 9], ids=["step", "sequence"])
def test_a_stack_compiles_to_one_graph_with_the_eager_results(S: int, stack: xLSTMBlockStack) -> None:
    arguments = example(stack, S)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    assert_close(differentiate(compiled, stack, *arguments), differentiate(stack, stack, *arguments))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor_generates_code_with_the_eager_results() -> None:
    torch.manual_seed(0)
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=D, num_blocks=1, num_heads=2, slstm_at=(0,)))
    arguments = example(stack, 1)
    compiled = torch.compile(stack, fullgraph=True)  # one small block: the C++ compiler alone takes 15 seconds
    with torch.no_grad():
        y, state = compiled(*arguments)
        expected, expected_state = stack(*arguments)
    assert_close((y, state, []), (expected, expected_state, []))


def test_an_exported_step_is_reloaded_for_any_batch(stack: xLSTMBlockStack, tmp_path: Path) -> None:
    x, state, resets = example(stack, 1)
    batch = {0: Dim.AUTO}
    program = export(stack, (x, state, resets), dynamic_shapes=(batch, tree_map(lambda _: batch, state), batch))
    torch.export.save(program, tmp_path / "step.pt2")
    step = torch.export.load(tmp_path / "step.pt2").module()
    for rows in (2, 5):
        state = eager_state = stack.initial_state(rows)
        for x in torch.randn(3, rows, 1, D):
            resets = torch.rand(rows, 1) < 0.3
            y, state = step(x, state, resets)
            expected, eager_state = stack(x, eager_state, resets)
            assert_close((y, state, []), (expected, eager_state, []))


def test_one_exported_program_serves_all_batch_sizes_and_lengths(stack: xLSTMBlockStack) -> None:
    any_size = {0: Dim.AUTO, 1: Dim.AUTO}
    program = export(stack, (torch.randn(2, 7, D),), dynamic_shapes=(any_size,)).module()
    for rows, S in ((5, 16), (1, 150)):
        x = torch.randn(rows, S, D)
        y, state = program(x)
        assert_close((y, state, []), (*stack(x), []))


def test_an_exported_program_reads_inputs_of_any_strides(stack: xLSTMBlockStack) -> None:
    x, state, resets = example(stack, 5)
    program = export(stack, (x, state, resets)).module()

    def strided(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]

    y, after = program(strided(x), tree_map(strided, state), strided(resets))
    assert_close((y, after, []), (*stack(x, state, resets), []))
