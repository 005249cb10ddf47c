"""The two recurrences in one form, so that each conformance test is written once: operands, entry, reference."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from xlstm_kernels import core, initial_mlstm_state, initial_slstm_state, mlstm, mLSTMState, slstm, sLSTMState
from xlstm_kernels.ops.mlstm.reference import mlstm_reference
from xlstm_kernels.ops.slstm.reference import slstm_reference

B, NH, DK, DV, DH = 2, 3, 8, 5, 6

# Relative to the largest entry of what is compared, or to 1; at most ten times the errors measured.
FORWARD_TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
GRADIENT_TOLERANCE = {torch.float64: 2e-13, torch.float32: 4e-5}

Operands = tuple[Tensor, ...]


@dataclass(frozen=True)
class Recurrence:
    name: str
    entry: Callable  # (*operands, state, resets=...) -> h, state
    reference: Callable  # (*operands, state, resets) -> h, state; always from a given state
    random_operands: Callable[[int], Operands]
    random_state: Callable[[], tuple]
    initial_state: Callable[[], tuple]
    num_sequences: int  # the first operands have a time axis, the others are weights
    finest: torch.dtype = torch.float64  # the most exact type that the implementation takes
    keeping: float = 12.0  # a forget gate's pre-activation that is near 1

    def variant(self, name: str, **options: object) -> "Recurrence":
        """The same recurrence with options set, in the entry and in the reference."""
        entry, reference = partial(self.entry, **options), partial(self.reference, **options)
        return replace(self, name=f"{self.name}, {name}", entry=entry, reference=reference)

    def operands(self, S: int) -> Operands:
        """Random operands, rounded to what the implementation takes."""
        return tuple(x.to(self.finest) for x in self.random_operands(S))

    def state(self, *, fresh: bool = False) -> tuple:
        state = self.initial_state() if fresh else self.random_state()
        return type(state)(*(x.to(self.finest) for x in state))

    def steps(self, operands: Operands, start: int, stop: int) -> Operands:
        return tuple(x[:, start:stop] if at < self.num_sequences else x for at, x in enumerate(operands))

    def rows(self, operands: Operands, row: int) -> Operands:
        return tuple(x[row : row + 1] if at < self.num_sequences else x for at, x in enumerate(operands))


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _mlstm_operands(S: int) -> Operands:
    return double(B, S, NH, DK), double(B, S, NH, DK), double(B, S, NH, DV), 3 * double(B, S, NH), 3 * double(B, S, NH)


def _slstm_operands(S: int) -> Operands:
    return 2 * double(B, S, 4, NH, DH), 0.4 * double(4, NH, DH, DH), double(4, NH, DH)


def _forgetful_operands(S: int) -> Operands:
    """Forget gates mostly below 1, so that m stays small: c and n are in units of exp(m), rounded as m is."""
    gates, weight, bias = _slstm_operands(S)
    return gates - torch.tensor([0.0, 3.0, 0.0, 0.0]).double()[:, None, None], weight, bias


MLSTM = Recurrence(
    name="mlstm",
    entry=partial(mlstm, backend="native"),
    reference=mlstm_reference,
    random_operands=_mlstm_operands,
    random_state=lambda: mLSTMState(double(B, NH, DK, DV), double(B, NH, DK), double(B, NH)),
    initial_state=lambda: initial_mlstm_state(B, NH, DK, DV, dtype=torch.float64),
    num_sequences=5,
)
SLSTM = Recurrence(
    name="slstm",
    entry=partial(slstm, backend="native"),
    reference=slstm_reference,
    random_operands=_slstm_operands,
    random_state=lambda: sLSTMState(
        double(B, NH, DH), double(B, NH, DH), torch.rand(B, NH, DH).double() + 0.5, double(B, NH, DH)
    ),
    initial_state=lambda: initial_slstm_state(B, NH, DH, dtype=torch.float64),
    num_sequences=1,
)
SLSTM_COMPILED = replace(SLSTM, name="slstm compiled", entry=partial(slstm, backend="compiled"), finest=torch.float32)

MLSTM_COMPILED = replace(MLSTM, name="mlstm compiled", entry=partial(mlstm, backend="compiled"), finest=torch.float32)

SIGMOID, SIGMOID_COMPILED = (op.variant("sigmoid input gate", input_gate="sigmoid") for op in (MLSTM, MLSTM_COMPILED))
PLAIN, PLAIN_COMPILED = (
    op.variant("not normalised", input_gate="sigmoid", normalize=False) for op in (MLSTM, MLSTM_COMPILED)
)
EXPONENTIAL, EXPONENTIAL_COMPILED = (
    replace(op, random_operands=_forgetful_operands, keeping=-6e-6).variant(
        "exponential forget gate", forget_gate="exponential"
    )
    for op in (SLSTM, SLSTM_COMPILED)
)

needs_core = pytest.mark.skipif(core.load() is None, reason="the C core was not built")


def _where_built(*ops: Recurrence) -> list:
    return [pytest.param(op, marks=needs_core) for op in ops]


RECURRENCES = [MLSTM, SLSTM, *_where_built(MLSTM_COMPILED, SLSTM_COMPILED)]
VARIANTS = [
    *(*RECURRENCES, SIGMOID, PLAIN, EXPONENTIAL),
    *_where_built(SIGMOID_COMPILED, PLAIN_COMPILED, EXPONENTIAL_COMPILED),
]


@dataclass(frozen=True)
class Result:
    """Outputs, last state, and the gradients of a random linear function of both."""

    values: list[Tensor]
    gradients: list[Tensor]


def differentiate(run: Callable, operands: Operands, state: tuple, *, dtype: torch.dtype = torch.float64) -> Result:
    """Run ``run(*operands, state) -> h, state`` on leaves of the given dtype and differentiate it."""
    operands = tuple(x.to(dtype, copy=True).requires_grad_() for x in operands)
    *memories, m = (x.to(dtype, copy=True) for x in state)  # m is a scale and has no gradient
    memories = [x.requires_grad_() for x in memories]
    h, last = run(*operands, type(state)(*memories, m))
    probe = torch.Generator().manual_seed(1)
    loss = sum(
        (x * torch.randn(x.shape, generator=probe, dtype=torch.float64).to(dtype)).sum() for x in (h, *last[:-1])
    )
    leaves = [*operands, *memories]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return Result([h.detach(), *(x.detach() for x in last)], gradients)


def assert_close(actual: Result, expected: Result, dtype: torch.dtype = torch.float64) -> None:
    for kind, tolerance in (("values", FORWARD_TOLERANCE[dtype]), ("gradients", GRADIENT_TOLERANCE[dtype])):
        for at, (a, e) in enumerate(zip(getattr(actual, kind), getattr(expected, kind), strict=True)):
            scale = e.abs().max().clamp(min=1.0).item()
            torch.testing.assert_close(
                a.double(),
                e.double(),
                rtol=0,
                atol=tolerance * scale,
                msg=lambda text, what=f"{kind}[{at}]": f"{what}: {text}",
            )
