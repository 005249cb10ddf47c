"""Perceptrons in one call, against PyTorch's operators in float64."""

import pytest
import torch
from torch.nn import functional as F

from tests.kernels.recurrences import needs_core
from xlstm_kernels import TanhStepper, core, tanh_mlps

WIDTHS = {"two networks": [(64, 64), (32,)], "one wide layer": [(160,)], "three layers": [(16, 48, 16)]}


def networks_of(features: int, widths: list[tuple[int, ...]]) -> list[list[torch.Tensor]]:
    networks = []
    for layers in widths:
        sizes = list(zip((features, *layers), layers, strict=False))
        networks.append([t for i, o in sizes for t in (torch.randn(o, i) / i**0.5, torch.randn(o))])
    return networks


def composed(x, networks):
    outputs = []
    for network in networks:
        h = x
        for weight, bias in zip(network[::2], network[1::2], strict=True):
            h = torch.tanh(F.linear(h, weight, bias))
        outputs.append(h)
    return outputs


def differentiate(run, x, networks, dtype, needs_dx=True):
    x = x.to(dtype).requires_grad_(needs_dx)
    networks = [[weight.detach().to(dtype).requires_grad_() for weight in network] for network in networks]
    outputs, generator = run(x, networks), torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator).to(dtype)).sum() for y in outputs)
    wanted = [*([x] if needs_dx else []), *(weight for network in networks for weight in network)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(loss, wanted)]


@needs_core
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("rows", [1, 7, 128, 300])
@pytest.mark.parametrize("features", [3, 68, 32])
@pytest.mark.parametrize("needs_dx", [True, False], ids=["", "constant input"])
def test_outputs_and_gradients_are_those_of_the_operators(widths, rows, features, needs_dx):
    torch.manual_seed(0)
    x, networks = torch.randn(rows, features), networks_of(features, widths)
    actual = differentiate(tanh_mlps, x, networks, torch.float32, needs_dx)
    expected = differentiate(composed, x, networks, torch.float64, needs_dx)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-6 * theirs.abs().max().clamp(min=1).item())


@needs_core
@pytest.mark.parametrize("instruction_set", [0, 1, 2])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set_and_number_of_threads_gives_the_same(instruction_set, threads):
    torch.manual_seed(0)
    x, networks, library = torch.randn(500, 10), networks_of(10, [(64, 32)]), core.load()
    expected, before = differentiate(tanh_mlps, x, networks, torch.float32), torch.get_num_threads()
    library.xlstm_instruction_set(instruction_set)
    torch.set_num_threads(threads)
    try:
        actual = differentiate(tanh_mlps, x, networks, torch.float32)
    finally:
        library.xlstm_instruction_set(-1)
        torch.set_num_threads(before)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_the_core_does_not_take_runs_in_pytorch(dtype):
    x, networks = torch.randn(5, 4).to(dtype), networks_of(4, [(10, 16), ()])  # 10 is no whole vector
    networks = [[weight.to(dtype) for weight in network] for network in networks]
    for ours, theirs in zip(tanh_mlps(x, networks), composed(x, networks), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("x", "network", "message"),
    [
        ((5, 4, 4), ((16, 4), (16,)), r"x must be \(M, F\), got \(5, 4, 4\)"),
        ((5, 4), ((16, 4),), "network 0 must hold a weight and a bias for each layer, got 1 tensors"),
        ((5, 4), ((16, 3), (16,)), r"must be \(out, in = 4\) and \(out,\), got \(16, 3\) and \(16,\)"),
        ((5, 4), ((16, 4), (32,)), r"must be \(out, in = 4\) and \(out,\), got \(16, 4\) and \(32,\)"),
        ((5, 4), ((16, 4), (16,), (16, 32), (16,)), r"must be \(out, in = 16\) .* got \(16, 32\)"),
    ],
)
def test_layers_that_do_not_fit_are_named(x, network, message):
    with pytest.raises(ValueError, match=message):
        tanh_mlps(torch.zeros(x), [[torch.zeros(shape) for shape in network]])


@needs_core
def test_a_graph_of_it_is_pytorchs():
    x, networks = torch.randn(8, 4), networks_of(4, [(16,)])
    compiled = torch.compile(lambda x: tanh_mlps(x, networks), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), tanh_mlps(x, networks))


@needs_core
def test_a_second_derivative_is_refused():
    x = torch.randn(8, 4, requires_grad=True)
    (y,) = tanh_mlps(x, networks_of(4, [(16,)]))
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("widths", [[(64, 64), (32,)], [(10, 16), (16,)]], ids=["whole vectors", "others"])
def test_a_stepper_gives_what_the_networks_gave_when_it_was_made(widths):
    networks, x = networks_of(4, widths), torch.randn(6, 4)
    expected, step = tanh_mlps(x, networks), TanhStepper(networks)
    for network in networks:
        for weight in network:
            weight.zero_()
    for rows in (1, 6, 3):
        for ours, theirs in zip(step(x[:rows]), expected, strict=True):
            torch.testing.assert_close(ours, theirs[:rows], rtol=1e-6, atol=1e-6)


def test_what_a_stepper_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"each network must have a layer, got \[1, 0\]"):
        TanhStepper(networks_of(4, [(16,), ()]))
    with pytest.raises(ValueError, match=r"must be \(out, in = 4\)"):
        TanhStepper([*networks_of(4, [(16,)]), *networks_of(5, [(16,)])])
    with pytest.raises(ValueError, match=r"x must be \(M, 4\), got \(2, 5\)"):
        TanhStepper(networks_of(4, [(16,)]))(torch.zeros(2, 5))
