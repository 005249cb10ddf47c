"""The linear map read in halves: the values and gradients of the linear map, without autograd's copy of both halves."""

import torch
from torch import Tensor
from torch.nn import functional as F

from xlstm_kernels.fused import split_linear


def differentiate(halves: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Both halves, and the gradients of a function that weighs them differently."""
    loss = halves[0].square().sum() + (3 * halves[1]).sin().sum()
    return [*(x.detach() for x in halves), *torch.autograd.grad(loss, leaves)]


def test_halves_and_gradients_are_the_linear_maps() -> None:
    x, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5, 4), (6, 4)))
    expected = differentiate(F.linear(x, weight).chunk(2, dim=-1), [x, weight])
    for a, e in zip(differentiate(split_linear(x, weight), [x, weight]), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_autocast_rounds_as_it_does_for_the_linear_map() -> None:
    x, weight = (torch.randn(shape, requires_grad=True) for shape in ((3, 5, 4), (6, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        halves, expected = split_linear(x, weight), F.linear(x, weight).chunk(2, dim=-1)
    for half, e in zip(halves, expected, strict=True):
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, e)
    dx, dweight = torch.autograd.grad(sum(half.sum() for half in halves), [x, weight])
    assert dx.dtype == dweight.dtype == torch.float32


def test_a_half_that_nothing_reads_has_no_gradient() -> None:
    x, weight = torch.randn(5, 4), torch.randn(6, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(split_linear(x, weight)[1].sum(), weight)
    torch.testing.assert_close(gradient, torch.cat([torch.zeros(3, 4), x.sum(0).expand(3, 4)]))
