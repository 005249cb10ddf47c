"""Stacks of every kind of block: pieces equal the whole, resets equal fresh starts, every parameter learns."""

import copy
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.stacks import (
    STACKS,
    D,
    assert_all_close,
    assert_states_close,
    double,
    gradients,
    random_resets,
    random_stack,
    small_config,
)
from xlstm_kernels import (
    StackStepper,
    concat_states,
    detach_state,
    initial_mlstm_state,
    initial_slstm_state,
    map_state,
    mLSTMBlock,
    pack_state,
    select_state,
    sLSTMBlock,
    unpack_state,
    xLSTM7BBlock,
    xLSTMBlockStack,
    xLSTMConfig,
)
from xlstm_kernels.state import state_leaves

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=STACKS.values(), ids=STACKS)
def stack(request: pytest.FixtureRequest) -> xLSTMBlockStack:
    return random_stack(**request.param)


@pytest.fixture
def mixed() -> xLSTMBlockStack:
    return random_stack(**STACKS["mixed"])


@pytest.mark.parametrize("cuts", [(13,), tuple(range(1, 20))], ids=["two pieces", "single steps"])
def test_a_sequence_equals_its_pieces_in_outputs_state_and_gradients(
    stack: xLSTMBlockStack, cuts: tuple[int, ...]
) -> None:
    x, resets = double(3, 20, D).requires_grad_(), random_resets(3, 20)
    whole, state_whole = stack(x, resets=resets)
    pieces, state = [], None
    for start, stop in itertools.pairwise((0, *cuts, 20)):
        y, state = stack(x[:, start:stop], state, resets[:, start:stop])
        pieces.append(y)
    joined = torch.cat(pieces, dim=1)
    torch.testing.assert_close(joined, whole)
    assert_states_close(state, state_whole)
    inputs = [x, *stack.parameters()]
    assert_all_close(gradients(joined, state, inputs), gradients(whole, state_whole, inputs))


def test_resets_equal_independent_runs(stack: xLSTMBlockStack) -> None:
    x = double(2, 30, D)
    resets = torch.zeros(2, 30, dtype=torch.bool)
    resets[0, 11] = resets[1, 20] = True
    y, state = stack(x, resets=resets)
    for row, at in ((0, 11), (1, 20)):
        before, _ = stack(x[row : row + 1, :at])
        after, last = stack(x[row : row + 1, at:])
        torch.testing.assert_close(y[row : row + 1], torch.cat([before, after], dim=1))
        assert_states_close(select_state(state, [row]), last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("S", [1, 20], ids=["step", "sequence"])
def test_a_reset_at_the_first_step_forgets_even_a_state_of_nan(
    stack: xLSTMBlockStack, S: int, dtype: torch.dtype
) -> None:
    stack, x = stack.to(dtype), torch.randn(2, S, D, dtype=dtype)
    spoilt = map_state(lambda leaf: torch.full_like(leaf, torch.nan), stack.initial_state(2))
    resets = torch.zeros(2, S, dtype=torch.bool)
    resets[:, 0] = True
    y, state = stack(x, spoilt, resets)
    expected, expected_state = stack(x)
    near = {"rtol": 1e-4, "atol": 1e-3}  # float32's rounding, in weights far from a small start
    torch.testing.assert_close(y, expected, **near)
    parameters = list(stack.parameters())
    actual = gradients(y, state, parameters)
    for a, e in zip(actual, gradients(expected, expected_state, parameters), strict=True):
        torch.testing.assert_close(a, e, **near)


def test_a_packed_state_unpacks_to_itself_and_has_the_size_that_the_stack_tells(stack: xLSTMBlockStack) -> None:
    _, state = stack(double(3, 5, D))
    packed = pack_state(state)
    assert packed.shape == (3, stack.state_size)
    for a, b in zip(state_leaves(unpack_state(packed, like=stack.initial_state(1))), state_leaves(state), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copied_stack_gives_the_same_outputs(stack: xLSTMBlockStack, duplicate: Callable) -> None:
    x = double(2, 5, D)
    assert torch.equal(duplicate(stack)(x)[0], stack(x)[0])


def test_outputs_do_not_depend_on_later_inputs(stack: xLSTMBlockStack) -> None:
    x = double(1, 20, D)
    changed = x.clone()
    changed[:, 12:] += 1
    torch.testing.assert_close(stack(x)[0][:, :12], stack(changed)[0][:, :12], rtol=0, atol=0)


def test_rows_do_not_depend_on_each_other(stack: xLSTMBlockStack) -> None:
    x = double(3, 9, D)
    alone = [stack(row[None]) for row in x]
    y, state = stack(x)
    torch.testing.assert_close(y, torch.cat([y for y, _ in alone]))
    assert_states_close(state, concat_states([state for _, state in alone]))


def test_every_parameter_receives_a_gradient(stack: xLSTMBlockStack) -> None:
    y, _ = stack(double(2, 10, D))
    y.square().sum().backward()
    without = [name for name, p in stack.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_gradients_cross_a_carried_state_until_it_is_detached(stack: xLSTMBlockStack) -> None:
    x = double(1, 6, D).requires_grad_()
    _, state = stack(x)
    later = double(1, 6, D)
    assert torch.autograd.grad(stack(later, state)[0].square().sum(), x)[0].abs().sum() > 0
    assert torch.autograd.grad(stack(later, detach_state(state))[0].square().sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
def test_whatever_runs_it_in_float32_a_stack_and_its_step_follow_float64(options: dict) -> None:
    exact = random_stack(**options, embedding_dim=32)  # wide enough for all that the C core has
    stack, x = copy.deepcopy(exact).float(), double(3, 9, 32)
    step = StackStepper(stack)
    state, outputs = step.initial_state(3), []
    with torch.no_grad():
        expected, y = exact(x)[0], stack(x.float())[0]
        for t in range(9):
            y_t, state = step(x[:, t].float(), state)
            outputs.append(y_t)
    for actual in (y, torch.stack(outputs, dim=1)):
        assert (actual.double() - expected).norm() < 1e-5 * expected.norm()  # the head norms magnify small outputs


class MethodsForWeights(nn.Module):
    """A linear map as torch.ao quantises it: weight and bias are methods."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def weight(self) -> Tensor:
        return self.linear.weight

    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_a_stack_with_quantised_maps_starts_from_the_empty_memory(stack: xLSTMBlockStack) -> None:
    quantised, x = copy.deepcopy(stack), double(2, 5, D)
    for parent in list(quantised.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, MethodsForWeights(child))
    torch.testing.assert_close(quantised(x)[0], stack(x)[0])


def test_inputs_of_another_width_and_foreign_states_are_named(mixed: xLSTMBlockStack) -> None:
    with pytest.raises(ValueError, match=r"x must be \(B, S, embedding_dim = 16\), got \(2, 3, 9\)"):
        mixed(torch.zeros(2, 3, 9).double())
    x, state = torch.zeros(2, 3, D).double(), mixed.initial_state(2)
    with pytest.raises(ValueError, match="each of the 2 blocks, got 1"):
        mixed(x, state[:1])
    with pytest.raises(TypeError, match=r"got Tensor; a packed one is unpacked by unpack_state"):
        mixed(x, pack_state(state))
    with pytest.raises(TypeError, match="a tuple of BlockState"):
        mixed(x, tuple(tuple(block) for block in state))


def test_what_is_no_tensor_is_named_with_its_cure(mixed: xLSTMBlockStack) -> None:
    x = torch.zeros(2, 3, D).double()
    with pytest.raises(TypeError, match=r"x must be a tensor, got ndarray; convert it with torch\.as_tensor"):
        mixed(x.numpy())
    with pytest.raises(TypeError, match="lengths must be a tensor, got list"):
        mixed(x, lengths=[1, 2])
    with pytest.raises(TypeError, match="resets must be a tensor, got list"):
        mixed(x, resets=[[False] * 3] * 2)


@pytest.mark.parametrize("kind", [mLSTMBlock, sLSTMBlock, xLSTM7BBlock])
@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((2, 3, 9), torch.float32, ValueError, r"x must be \(B, S, embedding_dim = 16\), got \(2, 3, 9\)"),
        ((3, 16), torch.float32, ValueError, r"x must be \(B, S, embedding_dim = 16\), got \(3, 16\)"),
        ((2, 3, 16), torch.float64, TypeError, "x must be torch.float32 like the weights, got torch.float64"),
    ],
)
def test_a_block_alone_names_what_does_not_fit(
    kind: type, shape: tuple, dtype: torch.dtype, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(16, 1)(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("kind", "other"),
    [(mLSTMBlock, initial_slstm_state(2, 1, 16)), (sLSTMBlock, initial_mlstm_state(2, 1, 16, 16))],
)
def test_a_block_refuses_the_memory_of_another_kind(kind: type, other: tuple) -> None:
    block, x = kind(16, 1), torch.zeros(2, 3, 16)
    state = block.initial_state(2)
    with pytest.raises(TypeError, match=f"got {type(other).__name__}; None is the empty memory"):
        block(x, state._replace(cell=other))
    with pytest.raises(TypeError, match="state must be a BlockState, as the block returns it, got tuple"):
        block(x, tuple(state))


def test_a_dict_is_no_config() -> None:
    with pytest.raises(TypeError, match=r"config must be an xLSTMConfig, got dict; a dict goes in as \*\*config"):
        xLSTMBlockStack({"embedding_dim": 16, "num_blocks": 1})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2 * (2 * 16 * 16 + 32 + 2 + 3 * 32)),  # C, n, m, window at the inner width
        ({"slstm_at": "0:1"}, 2 * (4 * 16 + 3 * 16)),  # h, c, n, m, window
        ({"mlstm_block": "7b"}, 2 * (2 * 4 * 8 + 8 + 2)),
        ({"slstm_at": "0:1", "slstm_block": "tirex"}, 2 * (4 * 16)),
    ],
    ids=["mLSTM", "sLSTM", "7b", "TiRex"],
)
def test_the_state_of_each_kind_of_block_is_as_small_as_its_formula(options: dict, expected: int) -> None:
    assert xLSTMBlockStack(small_config(**options)).state_size == expected


@pytest.mark.parametrize("options", [{"slstm_at": "1:1"}, {"mlstm_block": "7b"}], ids=["paper", "7b"])
def test_recomputed_blocks_give_the_same_outputs_state_and_gradients(options: dict) -> None:
    x, resets = double(2, 9, D), random_resets(2, 9)
    results = []
    for checkpoint in (False, True):
        stack = random_stack(**options, dropout=0.5, checkpoint=checkpoint)
        _, state = stack.eval()(double(2, 4, D))
        torch.manual_seed(1)  # the dropout of both runs
        y, last = stack.train()(x, state, resets)
        results.append([y, pack_state(last), *gradients(y, last, list(stack.parameters()))])
    assert_all_close(results[1], results[0])


def count_saved(stack: xLSTMBlockStack, x: torch.Tensor) -> int:
    """Numbers that a forward pass keeps for the backward pass."""
    saved = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stack(x)
    return saved


def test_recomputed_blocks_keep_a_tenth_of_the_memory_and_only_in_training() -> None:
    x = double(2, 40, D)
    plain, recomputed = (count_saved(random_stack(slstm_at="1:1", checkpoint=on), x) for on in (False, True))
    assert recomputed < plain / 10
    assert count_saved(random_stack(slstm_at="1:1", checkpoint=True).eval(), x) == plain


@pytest.mark.parametrize("slstm_at", [(), (0,)], ids=["mLSTM", "sLSTM"])
@pytest.mark.parametrize("dim", [20, 64])  # the sLSTM's first is none that the C core takes whole
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": torch.zeros(4, 7, 3)}, ValueError, r"embedding_dim = \d+\), got \(4, 7, 3\)"),
        ({"x": torch.float64}, TypeError, "x must be torch.float32 like the weights, got torch.float64"),
        ({"x": torch.int64}, TypeError, "x must be torch.float32 like the weights, got torch.int64"),
        ({"state": 3}, ValueError, r"must be .*4, .*got \(3, "),
        ({"resets": torch.zeros(4, 6, dtype=torch.bool)}, ValueError, r"resets must be .* = \(4, 7\), got \(4, 6\)"),
        ({"resets": torch.zeros(4, 7)}, TypeError, "resets must be bool, got torch.float32"),
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, r"lengths must be \(B,\) = \(4,\), got \(3,\)"),
        ({"lengths": torch.tensor([1, 2, 3, 9])}, ValueError, "lengths must be between 0 and S = 7, got 9"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    slstm_at: tuple[int, ...], dim: int, wrong: dict, error: type[Exception], message: str
) -> None:
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=dim, num_blocks=1, num_heads=4, slstm_at=slstm_at))
    x = wrong.get("x", torch.zeros(4, 7, dim))
    x = torch.zeros(4, 7, dim).to(x) if isinstance(x, torch.dtype) else x
    state = stack.initial_state(wrong["state"]) if "state" in wrong else None
    with pytest.raises(error, match=message):
        stack(x, state, wrong.get("resets"), lengths=wrong.get("lengths"))
