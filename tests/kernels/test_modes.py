"""Stacks and recurrences in PyTorch's other modes: fake and meta tensors, transforms, dual numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from tests.kernels.recurrences import RECURRENCES, Recurrence
from tests.kernels.stacks import D, small_config
from xlstm_kernels import lstm, tanh_mlps, xLSTMBlockStack
from xlstm_kernels.state import state_leaves

KINDS = {"mixed": {"slstm_at": "1:1", "num_heads": 1}, "7b": {"mlstm_block": "7b"}}  # the first runs in the C core
of_each = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
TRANSFORMS: dict[str, Callable] = {
    "vmap": lambda run, x: torch.vmap(run)(x[None]),
    "grad": lambda run, x: torch.func.grad(lambda x: run(x).sum())(x),
    "jvp": lambda run, x: torch.func.jvp(run, (x,), (x,)),
}


@of_each
@pytest.mark.parametrize("S", [1, 9], ids=["step", "sequence"])
@pytest.mark.parametrize("with_gradients", [True, False], ids=["gradients", "inference"])
def test_shapes_are_found_on_fake_tensors_without_memory(options: dict, S: int, with_gradients: bool) -> None:
    with FakeTensorMode(), torch.set_grad_enabled(with_gradients):
        stack = xLSTMBlockStack(small_config(**options))
        y, state = stack(torch.randn(3, S, D), lengths=torch.tensor([S, 1, 0]))
        if with_gradients:
            y.sum().backward()
    assert y.shape == (3, S, D)
    assert [leaf.shape for leaf in state_leaves(state)] == [leaf.shape for leaf in state_leaves(stack.initial_state(3))]


def test_perceptrons_find_their_shapes_on_fake_tensors() -> None:
    with FakeTensorMode():
        (y,) = tanh_mlps(torch.randn(3, 4), [[torch.randn(16, 4), torch.randn(16)]])
    assert y.shape == (3, 16)


@of_each
def test_a_stack_runs_on_the_meta_device(options: dict) -> None:
    with torch.device("meta"):
        stack = xLSTMBlockStack(small_config(**options))
        y, state = stack(torch.empty(3, 9, D), resets=torch.empty(3, 9, dtype=torch.bool))
    y.sum().backward()
    assert y.is_meta
    assert all(leaf.is_meta for leaf in state_leaves(state))


def test_the_plain_lstm_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        h, _ = lstm(torch.empty(3, 9, 4, 2, 5), torch.empty(4, 2, 5, 5))
    assert h.shape == (3, 9, 2, 5)


@pytest.mark.parametrize("op", RECURRENCES, ids=lambda op: op.name)
@pytest.mark.parametrize("with_gradients", [True, False], ids=["gradients", "inference"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_are_refused_with_a_word_on_what_to_do(
    transform: Callable, with_gradients: bool, op: Recurrence
) -> None:
    first, *others = op.operands(5)
    with torch.set_grad_enabled(with_gradients), pytest.raises(NotImplementedError, match=r"torch\.func's transforms"):
        transform(lambda x: op.entry(x, *others)[0], first)


@of_each
def test_a_stack_never_drops_a_dual_numbers_tangent(options: dict) -> None:
    stack = xLSTMBlockStack(small_config(**options)).requires_grad_(False)
    x: Tensor = torch.randn(2, 5, D)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        stack(forward_ad.make_dual(x, torch.ones_like(x)))
