"""What lies between a block's projections in Triton, run by its interpreter on the CPU against PyTorch in float64.

Shapes: B batch, S sequence, NH heads, DH head dim, E channels, K convolution kernel size.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.kernels.interpreter import require_interpreter

require_interpreter()

from xlstm_kernels.fused.conv.triton_launch import conv_triton  # noqa: E402
from xlstm_kernels.fused.norm.triton_launch import norm_triton  # noqa: E402
from xlstm_kernels.layers import CausalConv, HeadwiseLinear  # noqa: E402

B, NH = 3, 2
SIZES = [(1, 8, 4, 4), (2, 8, 4, 4), (21, 12, 4, 3), (9, 72, 4, 4), (5, 8, 1, 2), (5, 20, 6, 10)]  # S, E, K, map block
with_each = pytest.mark.parametrize("flags", ["neither", "resets", "lengths", "resets and lengths"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def conv_arguments(S: int, E: int, K: int, block: int) -> list[Tensor]:
    """x, a view of twice its channels; window; weights of the convolution, maps and gates."""
    shapes = [(K, E), (E,), *[(E // block, block, block)] * 3, (2 * NH, 3 * E), (2 * NH,)]
    return [torch.randn(B, S, 2 * E), torch.randn(B, K - 1, E), *(0.5 * torch.randn(shape) for shape in shapes)]


def conv_flags(flags: str, S: int) -> tuple[Tensor | None, Tensor | None]:
    resets, lengths = torch.rand(B, S) < 0.3, torch.tensor([0, S, (S + 1) // 2])
    return resets if "resets" in flags else None, lengths if "lengths" in flags else None


def plain_conv(up: Tensor, window: Tensor, *weights: Tensor, flags: tuple) -> list[Tensor]:
    """The layers' own text, in the operator's order."""
    x = up.chunk(2, dim=-1)[0]
    conv = CausalConv(x.shape[-1], len(weights[0])).double()
    y, after = torch.func.functional_call(
        conv, dict(zip(("weight", "bias"), weights, strict=False)), (x, window, *flags)
    )
    outputs = [F.silu(y), after]
    if len(weights) > 2:
        maps = [HeadwiseLinear(w.shape[0] * w.shape[1], w.shape[1], init_dim=1) for w in weights[2:5]]
        read = (outputs[0], outputs[0], x)
        mapped = [
            torch.func.functional_call(m, {"weight": w}, r) for m, w, r in zip(maps, weights[2:5], read, strict=True)
        ]
        outputs += [*mapped, *F.linear(torch.cat(mapped, dim=-1), *weights[5:]).chunk(2, dim=-1)]
    return outputs


def fused_conv(up: Tensor, window: Tensor, *weights: Tensor, flags: tuple) -> list[Tensor]:
    return conv_triton(up.chunk(2, dim=-1)[0], window, list(weights), *flags)


def differentiate(run, arguments: list[Tensor], dtype: torch.dtype, **options) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Outputs and the gradients of a random linear function of them."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in arguments]
    outputs = run(*leaves, **options)
    probe = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=probe).to(y.dtype)).sum() for y in outputs)
    return [*(y.detach() for y in outputs), *torch.autograd.grad(loss, leaves)]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for at, (a, e) in enumerate(zip(actual, expected, strict=True)):
        scale = max(e.abs().max().item(), 1.0) if e.numel() else 1.0
        torch.testing.assert_close(a.double(), e, rtol=0, atol=2e-6 * scale, msg=lambda m, at=at: f"[{at}]: {m}")


@with_each
@pytest.mark.parametrize("mapped", [True, False], ids=["with maps", "alone"])
@pytest.mark.parametrize(("S", "E", "K", "block"), SIZES)
def test_convolution_maps_and_gates_equal_the_layers(
    S: int, E: int, K: int, block: int, mapped: bool, flags: str
) -> None:
    arguments = conv_arguments(S, E, K, block)
    given = conv_flags(flags, S)
    arguments = arguments if mapped else arguments[:4]
    expected = differentiate(plain_conv, arguments, torch.float64, flags=given)
    assert_close(differentiate(fused_conv, arguments, torch.float32, flags=given), expected)


def plain_norm(h: Tensor, weight: Tensor, convolved: Tensor | None, skip: Tensor | None, up: Tensor | None) -> list:
    y = F.layer_norm(h, h.shape[-1:], eps=1e-5).flatten(-2) * weight
    y = y if skip is None else y + skip * convolved
    return [y if up is None else y * F.silu(up.chunk(2, dim=-1)[1])]


def fused_norm(h: Tensor, weight: Tensor, convolved: Tensor | None, skip: Tensor | None, up: Tensor | None) -> list:
    return [norm_triton(h, weight, 1e-5, convolved, skip, None if up is None else up.chunk(2, dim=-1)[1])]


@pytest.mark.parametrize("kind", ["plain", "skip", "gate", "skip and gate"])
@pytest.mark.parametrize(("S", "DH"), [(1, 4), (5, 6), (70, 5), (3, 40)])
def test_head_norm_skip_and_gate_equal_the_layers(S: int, DH: int, kind: str) -> None:
    E = NH * DH
    every = [torch.randn(B, S, NH, DH), torch.randn(E), torch.randn(B, S, E), torch.randn(E), torch.randn(B, S, 2 * E)]
    places = [0, 1, *([2, 3] if "skip" in kind else []), *([4] if "gate" in kind else [])]

    def of(run):  # type: ignore[no-untyped-def]
        def place(*given: Tensor) -> list[Tensor]:
            arguments = [None] * 5
            for at, x in zip(places, given, strict=True):
                arguments[at] = x
            return run(*arguments)

        return place

    arguments = [every[place] for place in places]
    expected = differentiate(of(plain_norm), arguments, torch.float64)
    assert_close(differentiate(of(fused_norm), arguments, torch.float32), expected)


@pytest.mark.parametrize("mapped", [True, False], ids=["with maps", "alone"])
@pytest.mark.parametrize("flags", ["neither", "resets and lengths"])
def test_the_convolutions_operators_are_registered_rightly(mapped: bool, flags: str) -> None:
    up, window, *weights = (x.requires_grad_() for x in conv_arguments(4, 8, 4, 4))
    x, weights, given = up.detach()[..., :8].requires_grad_(), weights if mapped else weights[:2], conv_flags(flags, 4)
    operators = torch.ops.xlstm_kernels
    torch.library.opcheck(operators.conv_triton, (x, window, weights, *given))
    plain = [x.detach() for x in weights]
    outputs = operators.conv_triton(x.detach(), window.detach(), plain, *given)
    torch.library.opcheck(operators.conv_triton_backward, (x.detach(), window.detach(), plain, *given, outputs))


@pytest.mark.parametrize("whole", [True, False], ids=["skip and gate", "plain"])
def test_the_norms_operators_are_registered_rightly(whole: bool) -> None:
    h, weight = torch.randn(B, 3, NH, 4).requires_grad_(), torch.randn(8).requires_grad_()
    rest = [torch.randn(B, 3, 8), torch.randn(8), torch.randn(B, 3, 8)] if whole else [None] * 3
    rest = [x if x is None else x.requires_grad_() for x in rest]
    operators = torch.ops.xlstm_kernels
    torch.library.opcheck(operators.norm_triton, (h, weight, 1e-5, *rest))
    arguments = [x if x is None else x.detach() for x in (h, weight, *rest)]
    operators.norm_triton(h, weight, 1e-5, *rest)
    torch.library.opcheck(operators.norm_triton_backward, (torch.randn(B, 3, 8), *arguments[:2], 1e-5, *arguments[2:]))
