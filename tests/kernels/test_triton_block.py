"""What lies between a block's projections in Triton, run by its interpreter on the CPU against PyTorch in float64.

Shapes: B batch, S sequence, NH heads, DH head dim, E channels, K convolution kernel size.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.kernels.interpreter import require_interpreter

require_interpreter()

from xlstm_kernels import fused, map_state, mLSTMBlock, sLSTMBlock  # noqa: E402
from xlstm_kernels.blocks import xLSTMBlock  # noqa: E402
from xlstm_kernels.fused.conv import triton_launch as conv_launch  # noqa: E402
from xlstm_kernels.fused.conv.triton_launch import conv_triton  # noqa: E402
from xlstm_kernels.fused.norm import triton_launch as norm_launch  # noqa: E402
from xlstm_kernels.fused.norm.triton_launch import norm_triton  # noqa: E402
from xlstm_kernels.layers import CausalConv, HeadwiseLinear  # noqa: E402
from xlstm_kernels.ops.padding import valid_steps  # noqa: E402
from xlstm_kernels.state import state_leaves  # noqa: E402

B, NH = 3, 2
SIZES = [(1, 8, 4, 4), (2, 8, 4, 4), (14, 12, 4, 3), (3, 40, 4, 4), (5, 8, 1, 2), (5, 20, 6, 10)]  # S, E, K, map block
with_each = pytest.mark.parametrize("flags", ["neither", "resets", "lengths", "resets and lengths"])
one_and_all = pytest.mark.parametrize("flags", ["neither", "resets and lengths"])


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


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 2e-6) -> None:
    for at, (a, e) in enumerate(zip(actual, expected, strict=True)):
        scale = max(e.abs().max().item(), 1.0) if e.numel() else 1.0
        torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance * scale, msg=lambda m, at=at: f"[{at}]: {m}")


@one_and_all
@pytest.mark.parametrize(("S", "E", "K", "block"), SIZES)
def test_convolution_maps_and_gates_equal_the_layers(S: int, E: int, K: int, block: int, flags: str) -> None:
    arguments, given = conv_arguments(S, E, K, block), conv_flags(flags, S)
    expected = differentiate(plain_conv, arguments, torch.float64, flags=given)
    assert_close(differentiate(fused_conv, arguments, torch.float32, flags=given), expected)


@with_each
@pytest.mark.parametrize(("S", "E", "K"), [(1, 8, 4), (7, 8, 4), (4, 40, 6)])
def test_a_convolution_alone_equals_the_layer(S: int, E: int, K: int, flags: str) -> None:
    arguments, given = conv_arguments(S, E, K, 1)[:4], conv_flags(flags, S)
    expected = differentiate(plain_conv, arguments, torch.float64, flags=given)
    assert_close(differentiate(fused_conv, arguments, torch.float32, flags=given), expected)


def test_programs_that_go_through_several_tiles_add_their_gradients_up(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, given = conv_arguments(14, 8, 4, 4), conv_flags("resets", 14)
    expected = differentiate(plain_conv, arguments, torch.float64, flags=given)
    monkeypatch.setattr(conv_launch, "SHARES", 2)
    assert_close(differentiate(fused_conv, arguments, torch.float32, flags=given), expected)


def plain_norm(h: Tensor, weight: Tensor, convolved: Tensor | None, skip: Tensor | None, up: Tensor | None) -> list:
    y = F.layer_norm(h, h.shape[-1:], eps=1e-5).flatten(-2) * weight
    y = y if skip is None else y + skip * convolved
    return [y if up is None else y * F.silu(up.chunk(2, dim=-1)[1])]


def fused_norm(h: Tensor, weight: Tensor, convolved: Tensor | None, skip: Tensor | None, up: Tensor | None) -> list:
    return [norm_triton(h, weight, 1e-5, convolved, skip, None if up is None else up.chunk(2, dim=-1)[1], h.dtype)]


@pytest.mark.parametrize("kind", ["plain", "skip", "gate", "skip and gate"])
@pytest.mark.parametrize(("S", "DH"), [(1, 4), (5, 6), (24, 5), (3, 40)])
def test_head_norm_skip_and_gate_equal_the_layers(S: int, DH: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_launch, "SHARES", NH)  # one program a head goes through all tiles
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


@one_and_all
@pytest.mark.parametrize("kind", [mLSTMBlock, sLSTMBlock])
def test_a_block_through_its_kernels_equals_its_own_text(
    kind: type[xLSTMBlock], flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x, (resets, lengths) = kind(8, NH), torch.randn(B, 6, 8), conv_flags(flags, 6)
    state = map_state(torch.rand_like, block.initial_state(B))
    parameters = [0.5 * torch.randn_like(parameter) for parameter in block.parameters()]

    def run(x: Tensor, *parameters: Tensor) -> list[Tensor]:
        named = dict(zip((name for name, _ in block.named_parameters()), parameters, strict=True))
        given = map_state(lambda leaf: leaf.to(x.dtype), state)
        y, after = torch.func.functional_call(block, named, (x, given, resets, lengths))
        return [y, *state_leaves(after)[:-1]]

    expected = differentiate(run, [x, *parameters], torch.float64)
    for name in ("runs_mlstm", "runs_slstm"):
        monkeypatch.setattr(fused, name, lambda *_: False)
    for name in ("runs_conv", "runs_norm"):
        monkeypatch.setattr(fused, name, lambda *_: True)
    actual = differentiate(run, [x, *parameters], torch.float32)
    if lengths is not None:  # what lies beyond is unspecified
        outside = ~valid_steps(lengths, 6)
        for y in (actual[0], expected[0]):
            y[outside] = 0.0
    assert_close(actual, expected, tolerance=2e-5)


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
    torch.library.opcheck(operators.norm_triton, (h, weight, 1e-5, *rest, torch.float32))
    arguments = [x if x is None else x.detach() for x in (h, weight, *rest)]
    operators.norm_triton(h, weight, 1e-5, *rest, torch.float32)
    torch.library.opcheck(operators.norm_triton_backward, (torch.randn(B, 3, 8), *arguments[:2], 1e-5, *arguments[2:]))
