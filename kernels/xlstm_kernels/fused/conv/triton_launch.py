"""The convolution, SiLU and what reads off them as PyTorch operators: two launches forwards, two and a sum backwards.

Shapes: B batch, S sequence, NH heads, E channels, K convolution kernel size.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...ops.registration import must_record, register_gradient, register_op, straight
from ...ops.triton_launcher import launch, on_device_of
from .triton_kernels import conv_backward_inputs, conv_backward_steps, conv_forward, gates_forward, weights_backward

SHARES = 1056  # programs, about: each keeps its channels' weights and sums up their gradients in registers

GATE_ROWS = 64  # steps of a program that sums the gates up
WEIGHTS_CHANNELS = 16  # of a program that takes the gradients of products of weights apart


class _Plan(NamedTuple):
    """A kernel's tile, chosen by registers without spills; nothing is timed at run time."""

    steps: int
    channels: int
    stages: int = 1  # tiles whose inputs are under way at once
    warps: int = 4


_HALF = {"forward": _Plan(64, 64), "steps": _Plan(64, 64), "inputs": _Plan(64, 64)}
_SINGLE = {"forward": _Plan(16, 32), "steps": _Plan(16, 32), "inputs": _Plan(16, 32)}


def conv_triton(
    x: Tensor, window: Tensor, weights: list[Tensor], resets: Tensor | None, lengths: Tensor | None
) -> list[Tensor]:
    """SiLU of the causal convolution and the window after it; with maps also q, k, v and the gates i, f.

    Args:
        x: (B, S, E).
        window: the inputs before x, (B, K - 1, E).
        weights: of the convolution (K, E) and its bias (E). For an mLSTM also maps of q, k and v (blocks, out, in),
            which read the convolution's output, v's x itself, then the gates' (2 NH, 3 E) and their bias (2 NH).
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        lengths: integers (B,); row b ends after its first ``lengths[b]`` steps, and so does the window after it.

    Returns:
        (B, S, E) in the type of x and (B, K - 1, E) in that of the window; q, k, v (B, S, E) and, in float32, i and f
        (B, S, NH).
    """
    x = _with_regular_steps(x)
    resets = None if resets is None else resets.contiguous()
    arguments = (x, window.contiguous(), weights, resets, lengths)
    # Without gradients the call is direct: the dispatcher's way to an operator takes longer than a step.
    return _operator(*arguments) if must_record(x, window, *weights) else _run(*arguments)


def _forward(
    x: Tensor, window: Tensor, weights: list[Tensor], resets: Tensor | None, lengths: Tensor | None
) -> list[Tensor]:
    outputs = _forward_fake(x, window, weights, resets, lengths)
    convolved, after, *mapped = outputs
    B, S, _ = x.shape
    case = _case(x, weights, resets, lengths)
    constants = _constants(case, "forward")
    columns = _columns(case, constants)
    shares, tiles = _shares(B * S, columns, constants)
    maps: list[Tensor | None] = [*weights[2:6]] if mapped else [None] * 4
    read: list[Tensor | None] = [*mapped[:3]] if mapped else [None] * 3
    gate_shares = None
    if mapped:
        gate_shares = torch.empty(columns, B * S, 2 * case.NH, dtype=torch.float32, device=x.device)
    arrays = (x, window, resets, lengths, *weights[:2], *maps, convolved, *read, gate_shares, after)
    with on_device_of(x):
        launch(conv_forward, (columns, shares), (*arrays, B * S, S, _step_stride(x), tiles), constants)
        if mapped:
            gates = (gate_shares, weights[6], *mapped[3:], B * S)
            launch(gates_forward, (triton.cdiv(B * S, GATE_ROWS),), gates, _constants_of_gates(case, columns))
    return outputs


def _forward_fake(
    x: Tensor, window: Tensor, weights: list[Tensor], resets: Tensor | None, lengths: Tensor | None
) -> list[Tensor]:
    B, S, E = x.shape
    outputs = [x.new_empty(B, S, E), window.new_empty(window.shape)]
    if len(weights) > 2:
        outputs += [x.new_empty(B, S, E) for _ in range(3)]
        outputs += [x.new_empty(B, S, weights[5].shape[0] // 2, dtype=torch.float32) for _ in range(2)]
    return outputs


def _backward(
    x: Tensor,
    window: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    gradients: list[Tensor],
) -> list[Tensor]:
    """The gradients of x and the window, then those of all weights in one row."""
    dx, dwindow, dweights = _backward_fake(x, window, weights, resets, lengths, gradients)
    B, S, _ = x.shape
    places = B * (S + weights[0].shape[0] - 1)
    case = _case(x, weights, resets, lengths)
    of_steps, of_inputs = _constants(case, "steps"), _constants(case, "inputs")
    dconvolved, dafter, *dmapped = (gradient.contiguous() for gradient in gradients)
    dq, dk, dv, di, df = dmapped if case.mapped else [None] * 5
    q_map, k_map, v_map, gate_weight, _ = weights[2:] if case.mapped else [None] * 5
    dpre = torch.empty_like(dx)
    columns, input_columns = _columns(case, of_steps), _columns(case, of_inputs)
    shares, tiles = _shares(B * S, columns, of_steps)
    input_shares, input_tiles = _shares(places, input_columns, of_inputs)
    # Of each share of the steps the gradients of taps, bias and maps, of the gate weights times the maps before them
    # (those of q and k, which both read the convolution, and that of v), and of the gates' bias. What only one of the
    # kernels writes is zero elsewhere.
    width = dweights.shape[0] - (2 * case.NH * case.E if case.mapped else 0)
    totals = torch.zeros(max(shares, input_shares), width, dtype=torch.float32, device=x.device)
    stride = _step_stride(x)
    steps = (x, window, resets, *weights[:2], q_map, k_map, gate_weight, dconvolved, dq, dk, di, df, dpre, totals)
    inputs = (x, window, resets, lengths, weights[0], v_map, gate_weight, dpre, dv, di, df, dafter, dx, dwindow, totals)
    with on_device_of(x):
        launch(conv_backward_steps, (columns, shares), (*steps, B * S, S, stride, tiles, width), of_steps)
        numbers = (places, S, stride, input_tiles, width)
        launch(conv_backward_inputs, (input_columns, input_shares), (*inputs, *numbers), of_inputs)
        total = totals.sum(0)
        if not case.mapped:
            return [dx, dwindow, total]
        constants = _constants_of_weights(case)
        arrays = (total, q_map, k_map, v_map, gate_weight, dweights)
        launch(weights_backward, (_columns(case, constants),), arrays, constants)
    return [dx, dwindow, dweights]


def _backward_fake(
    x: Tensor,
    window: Tensor,
    weights: list[Tensor],
    resets: Tensor | None,
    lengths: Tensor | None,
    gradients: list[Tensor],
) -> list[Tensor]:
    numbers = sum(weight.numel() for weight in weights)
    return [x.new_empty(x.shape), window.new_empty(window.shape), x.new_empty(numbers, dtype=torch.float32)]


class _Case(NamedTuple):
    """All that the kernels are compiled for."""

    E: int
    K: int
    NH: int
    block: int
    dtype: torch.dtype
    mapped: bool
    with_resets: bool
    with_lengths: bool

    @property
    def sizes(self) -> dict[str, int]:
        # A matrix product has at least 16 columns.
        return {
            "E": self.E,
            "K": self.K,
            "NH": self.NH,
            "BLOCK": self.block,
            "GATES": max(16, _power_of_2(2 * self.NH)),
        }


def _case(x: Tensor, weights: list[Tensor], resets: Tensor | None, lengths: Tensor | None) -> _Case:
    K, E = weights[0].shape
    mapped = len(weights) > 2
    NH, block = (weights[5].shape[0] // 2, weights[2].shape[-1]) if mapped else (1, 1)
    return _Case(E, K, NH, block, x.dtype, mapped, resets is not None, lengths is not None)


@functools.cache
def _constants(case: _Case, kernel: str) -> dict[str, Any]:
    """Of a kernel that goes through steps: one object each, by which its launches are known."""
    plan = (_SINGLE if case.dtype == torch.float32 else _HALF)[kernel]
    channels = max(plan.channels, _power_of_2(case.block))
    constants = {
        **case.sizes,
        **{"BT": plan.steps, "BC": channels, "STAGES": plan.stages, "num_warps": plan.warps},
        **{"MAPPED": case.mapped, "WITH_RESETS": case.with_resets},
    }
    if kernel != "steps":
        constants["WITH_LENGTHS"] = case.with_lengths
    if kernel == "inputs":  # threads read vectors of 16 bytes, row after row, until they start over
        numbers_at_once = plan.warps * 32 * (16 // case.dtype.itemsize)
        constants["BR"] = max(1, min(plan.steps, numbers_at_once // channels))
    return constants


@functools.cache
def _constants_of_weights(case: _Case) -> dict[str, int]:
    return {**case.sizes, "BC": max(WEIGHTS_CHANNELS, _power_of_2(case.block))}


@functools.cache
def _constants_of_gates(case: _Case, columns: int) -> dict[str, int]:
    return {"COLUMNS": columns, "NH": case.NH, "GATES": case.sizes["GATES"], "BT": GATE_ROWS}


def _columns(case: _Case, constants: dict[str, Any]) -> int:
    """The tiles of channels, each of as many whole blocks of the maps as fit."""
    return triton.cdiv(case.E, constants["BC"] // case.block * case.block)


def _shares(steps: int, columns: int, constants: dict[str, Any]) -> tuple[int, int]:
    """In how many parts the steps are cut, and how many tiles of steps are in a part."""
    tiles = triton.cdiv(steps, constants["BT"])
    each = triton.cdiv(tiles * columns, SHARES)
    return triton.cdiv(tiles, each), each


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _with_regular_steps(x: Tensor) -> Tensor:
    """x with one distance from step to step through all rows, a multiple of E: so its alignment is known beforehand."""
    _, S, E = x.shape
    along_rows = S == 1 or x.stride(0) == S * x.stride(1)
    return x if along_rows and x.stride(2) == 1 and x.stride(0) % (S * E) == 0 else x.contiguous()


def _step_stride(x: Tensor) -> int:
    """In units of E; from row to row where each has but one step."""
    return x.stride(1 if x.shape[1] > 1 else 0) // x.shape[2]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, window, weights, resets, lengths = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, window, resets, lengths, *weights)
    ctx.shapes = [(y.shape, y.dtype) for y in output]


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    x, window, resets, lengths, *weights = ctx.saved_tensors
    given = zip(gradients, ctx.shapes, strict=True)
    dense = [x.new_zeros(shape, dtype=dtype) if dy is None else dy for dy, (shape, dtype) in given]
    dx, dwindow, total = _run_backward(x, window, weights, resets, lengths, dense)
    parts = total.split([weight.numel() for weight in weights])
    dweights = [part.view(weight.shape).to(weight.dtype) for part, weight in zip(parts, weights, strict=True)]
    return dx, dwindow, dweights, None, None


# For all devices: Triton's interpreter runs the same kernels on the CPU.
_operator = register_op("conv_triton", _forward, _forward_fake)
_run_backward = straight(register_op("conv_triton_backward", _backward, _backward_fake))
register_gradient(_operator, _setup_context, _differentiate)
_run = straight(_operator)
