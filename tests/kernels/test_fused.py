"""The blocks' single calls into the C core: held against the blocks' own text in float64, and as operators."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.recurrences import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, needs_core
from xlstm_kernels import StackStepper, core, fused, map_state, mLSTMBlock, sLSTMBlock, xLSTMBlockStack, xLSTMConfig
from xlstm_kernels.blocks import xLSTMBlock
from xlstm_kernels.fused import mlstm
from xlstm_kernels.ops.padding import valid_steps
from xlstm_kernels.state import state_leaves

pytestmark = needs_core
B = 3
BLOCKS: dict[str, Callable[[], xLSTMBlock]] = {
    "mlstm": partial(mLSTMBlock, 16, 2),
    "mlstm, odd head": partial(mLSTMBlock, 15, 3, qkv_block_size=3),
    "mlstm, wide head": partial(mLSTMBlock, 36, 1, qkv_block_size=2),
    "mlstm, long convolution": partial(mLSTMBlock, 8, 1, conv_kernel_size=7),
    "mlstm, no look-back": partial(mLSTMBlock, 8, 2, conv_kernel_size=1),
    "mlstm, RMS norm": partial(mLSTMBlock, 16, 2, norm="rms"),
    "slstm": partial(sLSTMBlock, 32, 2),
    "slstm, wide head": partial(sLSTMBlock, 48, 1, conv_kernel_size=6),
    "slstm, no look-back": partial(sLSTMBlock, 16, 1, conv_kernel_size=1),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("S", [1, 2, 16, 33, 100])
@pytest.mark.parametrize("with_resets", [False, True], ids=["no resets", "resets"])
@pytest.mark.parametrize("with_lengths", [False, True], ids=["whole", "lengths"])
def test_the_call_is_the_blocks_own_text(name: str, S: int, with_resets: bool, with_lengths: bool) -> None:
    block, state = random_block(name), random_state(random_block(name))
    x, resets = torch.randn(B, S, block.norm.weight.numel()), torch.rand(B, S) < 0.15 if with_resets else None
    lengths = torch.tensor([0, S, (S + 1) // 2]) if with_lengths else None
    assert called(lambda: block(x, state, resets, lengths))
    expected = differentiate(block.double(), x, state, resets, lengths)  # the core takes no float64
    actual = differentiate(block.float(), x, state, resets, lengths)
    assert_close(actual, expected)


@pytest.mark.parametrize("name", ["mlstm", "mlstm, odd head", "mlstm, RMS norm"])
@pytest.mark.parametrize("with_lengths", [False, True], ids=["whole", "lengths"])
def test_of_a_wide_block_blas_forms_the_projections_gradients(
    name: str, with_lengths: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlstm, "WIDE", 1)
    test_the_call_is_the_blocks_own_text(name, 33, True, with_lengths)


@pytest.mark.parametrize(("name", "inside"), [("mlstm", "q"), ("mlstm", "cell.gates"), ("slstm", "cell.norm")])
def test_a_hook_inside_a_block_is_run(name: str, inside: str) -> None:
    block, seen = random_block(name), []
    x = torch.randn(B, 5, block.norm.weight.numel())
    expected, _ = block(x)
    handle = block.get_submodule(inside).register_forward_hook(lambda *_: seen.append(inside))
    y, _ = block(x)
    assert seen == [inside]
    torch.testing.assert_close(y, expected)
    handle.remove()
    assert called(lambda: block(x))


def test_a_module_that_replaces_one_inside_a_block_counts_in_sequence_and_step() -> None:
    torch.manual_seed(0)
    stack, x = xLSTMBlockStack(xLSTMConfig(embedding_dim=32, num_blocks=1)), torch.randn(B, 5, 32)
    assert StackStepper(stack).is_compiled
    down = stack.blocks[0].down
    stack.blocks[0].down = nn.Sequential(down, nn.Dropout(1.0))  # as adapters do: all that the block adds is dropped
    assert torch.equal(stack(x)[0], stack.norm(x))
    step = StackStepper(stack.train(False))
    y, _ = step(x[:, 0], step.initial_state(B))
    assert not step.is_compiled
    torch.testing.assert_close(y, stack(x[:, :1])[0][:, 0])


@pytest.mark.parametrize(("name", "inside"), [("mlstm", "down"), ("slstm", "cell.norm")])
def test_a_patched_forward_inside_a_block_is_run(name: str, inside: str) -> None:
    block = random_block(name)
    x, module = torch.randn(B, 5, block.norm.weight.numel()), block.get_submodule(inside)
    module.forward = partial(lambda forward, y: 0 * forward(y), module.forward)
    y, _ = block(x)
    expected = x if block.ffn is None else x + block.ffn(block.ffn_norm(x))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_counts_in_training(training: bool) -> None:
    block = mLSTMBlock(16, 2, dropout=1.0).train(training)
    x = torch.randn(B, 20, 16)
    y, _ = block(x)
    assert torch.equal(y, x) == training  # all that the block adds is dropped


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
@pytest.mark.parametrize("threads", [2, 5, 9])
def test_the_rows_may_be_shared_among_threads(name: str, threads: int) -> None:
    block = random_block(name)
    x, state, resets = torch.randn(7, 20, block.norm.weight.numel()), random_state(block, 7), torch.rand(7, 20) < 0.1
    expected, before = differentiate(block, x, state, resets), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = differentiate(block, x, state, resets)
        again = differentiate(block, x, state, resets)
    finally:
        torch.set_num_threads(before)
    assert_close(actual, expected)
    assert all(torch.equal(a, b) for a, b in zip(actual["gradients"], again["gradients"], strict=True))


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
@pytest.mark.parametrize("instruction_set", [0, 1, 2])
def test_every_instruction_set_gives_the_same(name: str, instruction_set: int) -> None:
    block, library = random_block(name), core.load()
    x, resets = torch.randn(B, 40, block.norm.weight.numel()), torch.rand(B, 40) < 0.1
    state = random_state(block)
    expected = differentiate(block.double(), x, state, resets)
    assert library is not None
    library.xlstm_instruction_set(instruction_set)
    try:
        actual = differentiate(block.float(), x, state, resets)
    finally:
        library.xlstm_instruction_set(-1)
    assert_close(actual, expected)


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
def test_a_bfloat16_input_gives_a_bfloat16_output_and_a_float32_state(name: str) -> None:
    block = random_block(name)
    x = torch.randn(B, 20, block.norm.weight.numel())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = block(x)
    expected, _ = block(x)
    assert all(leaf.dtype == torch.float32 for leaf in state_leaves(state))
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def random_block(name: str) -> xLSTMBlock:
    """A block whose parameters are all away from their initial zeros and ones."""
    torch.manual_seed(0)
    block = BLOCKS[name]()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block


def random_state(block: xLSTMBlock, rows: int = B) -> tuple:
    state = map_state(lambda leaf: torch.randn(leaf.shape), block.initial_state(rows))
    if isinstance(block, sLSTMBlock):
        state = state._replace(cell=state.cell._replace(n=state.cell.n.abs() + 0.5))
    return state


def differentiate(
    block: nn.Module, x: Tensor, state: tuple, resets: Tensor | None, lengths: Tensor | None = None
) -> dict[str, list[Tensor]]:
    """Outputs and state, and the gradients of a random linear function of both, in the block's precision."""
    dtype = next(block.parameters()).dtype
    x = x.detach().to(dtype).requires_grad_()
    state = map_state(lambda leaf: leaf.detach().to(dtype).requires_grad_(), state)
    y, after = block(x, state, resets, lengths)
    if lengths is not None:  # what lies beyond is unspecified
        y = y.masked_fill(~valid_steps(lengths, x.shape[1])[..., None], 0.0)
    values = [y, *state_leaves(after)]
    probe = torch.Generator().manual_seed(1)
    loss = sum((v * torch.randn(v.shape, generator=probe).to(dtype)).sum() for v in values[:-1])  # m has no gradient
    leaves = [x, *state_leaves(state)[:-1], *block.parameters()]
    gradients = torch.autograd.grad(loss, leaves)
    return {"values": [v.detach() for v in values], "gradients": list(gradients)}


def assert_close(actual: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> None:
    for kind, tolerance in (("values", FORWARD_TOLERANCE), ("gradients", GRADIENT_TOLERANCE)):
        for at, (a, e) in enumerate(zip(actual[kind], expected[kind], strict=True)):
            error = torch.zeros(1) if e.numel() == 0 else (a.double() - e).abs().max() / e.abs().max().clamp(min=1.0)
            assert error.item() < tolerance[torch.float32], f"{kind}[{at}] off by {error.item():.1e}"


def called(run: Callable[[], object]) -> bool:
    """Whether the core was called."""
    calls, real = [], core.call

    def spy(name: str, *arguments: object) -> None:
        calls.append(name)
        real(name, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "call", spy)
        run()
    return bool(calls)


def operator_arguments(name: str, with_resets: bool, record: bool) -> tuple[torch._ops.OpOverload, tuple]:
    """A block's operator and the arguments that its ``mixer`` gives it."""
    block, seen = random_block(name), []
    operator = {"mlstm": torch.ops.xlstm_kernels.mlstm_block, "slstm": torch.ops.xlstm_kernels.slstm_mixer}[
        name
    ].default
    module = fused.mlstm if name == "mlstm" else fused.slstm

    def spy(*arguments: object) -> object:
        seen.append(arguments)
        return operator(*arguments)

    x = torch.randn(B, 20, block.norm.weight.numel())
    resets = torch.rand(B, 20) < 0.1 if with_resets else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_run", spy)
        block(x, random_state(block), resets)
    *arguments, _ = (detached(argument, record) for argument in seen[0])
    return operator, (*arguments, record)


def detached(argument: object, requires_grad: bool) -> object:
    """Floating tensors, alone or in lists, cut off from the graph; all else as it is."""
    if isinstance(argument, list):
        return [detached(part, requires_grad) for part in argument]
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.detach().requires_grad_(requires_grad)
    return argument


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("record", [False, True])
def test_pytorch_finds_no_fault_with_the_operators(name: str, with_resets: bool, record: bool) -> None:
    operator, arguments = operator_arguments(name, with_resets, record)
    torch.library.opcheck(operator, arguments)
