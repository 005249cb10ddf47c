"""Which of the mLSTM's kernels a pass launches, and with what besides tensors: prepared once for arrays of a layout.

At small sizes the host takes longer than the kernels; so all that follows from shapes and strides is kept.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, NC chunks.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..registration import traced
from ..triton_launcher import LAYOUTS, Launch
from .plan import Plan, Tiles, few_and_long, plan, tile
from .triton_kernels import (
    mlstm_backward_chunks,
    mlstm_backward_gates,
    mlstm_backward_roles,
    mlstm_backward_states,
    mlstm_forward,
    mlstm_gates,
    mlstm_outputs,
    mlstm_states,
)
from .triton_kernels.parts import role_part_size, value_part_size
from .triton_kernels.tape import record_size

EACH = 4  # chunks that a program of the backward pass goes through, at most
ENOUGH = 264  # programs for a device: two a multiprocessor, as many as its registers hold


@dataclass(frozen=True)
class Case:
    """All that kernels are compiled for."""

    DK: int
    DV: int
    dtype: torch.dtype
    few: bool
    with_resets: bool
    chunk_size: int | None
    normalize: bool
    precision: str

    @property
    def operand(self) -> torch.dtype:
        """Of matrix products and of the states between chunks, which enter them."""
        return torch.bfloat16 if self.dtype == torch.bfloat16 or self.precision == "bf16" else torch.float32

    @property
    def logs(self) -> torch.dtype:
        """Of sums of log gates: a difference of two is as exact as the operands are."""
        return torch.float64 if self.dtype == torch.float32 else torch.float32

    @property
    def constants(self) -> dict[str, Any]:
        """Those that most kernels have."""
        half = self.operand == torch.bfloat16  # whose products have one precision
        return {
            **{"DK": self.DK, "DV": self.DV, "WITH_RESETS": self.with_resets, "NORMALIZE": self.normalize},
            **{"OPERAND": tl.bfloat16 if half else tl.float32, "PRECISION": "ieee" if half else self.precision},
        }


class Layout(NamedTuple):
    """What the arrays and options of a call are; only where arrays lie, and what they hold, is left out."""

    B: int
    S: int
    NH: int
    DK: int
    DV: int
    of_q: tuple[int, ...]  # strides
    of_k: tuple[int, ...]
    of_v: tuple[int, ...]
    of_gates: tuple[int, ...]
    dtype: torch.dtype
    gates_dtype: torch.dtype
    device: torch.device
    fresh: bool  # no state is given
    with_resets: bool
    chunk_size: int | None
    normalize: bool
    precision: str

    @property
    def options(self) -> tuple[int | None, bool, str]:
        return self[-3:]


class Passes:
    """Forward and backward over arrays of a layout: what they launch, and the sizes of what they pass on."""

    def __init__(self, layout: Layout) -> None:
        B, S, NH, DK, DV = layout[:5]
        few = bool(few_and_long(B * NH, S))
        # A size that is traced as unknown becomes the one at hand: that of a head is compiled for.
        case = Case(int(DK), int(DV), layout.dtype, few, *layout[-4:])
        cut = plan_of(case)
        self.layout, self.case, self.cut, self.device = layout, case, cut, layout.device
        self.NC = NC = count(S, cut.chunk)
        self.state_shapes = (B, NH, DK, DV), (B, NH, DK), (B, NH)
        chunks = B * NH * NC
        self.tape_size = chunks * _numbers(record_size, cut.chunk, case.DK)
        self.c_shape = B, NH, NC, DK, DV
        self.parts = count(DV, cut.backward_states.values)  # that dn and the denominator's share come in
        self.key_roles = 0 if cut.roles is None else count(DK, cut.roles.out)
        of_values = self.parts * _numbers(value_part_size, cut.chunk, case.DK)
        self.numbers_back = chunks * (of_values + self.key_roles * _numbers(role_part_size, cut.chunk))
        self.forward = functools.cache(self._prepare_forward)
        self.backward = functools.cache(self._prepare_backward)

    def tape(self, *, empty: bool = False) -> Tensor:
        """Room for numbers of steps and chunks in one flat array, as tape.py says."""
        return torch.empty(0 if empty else self.tape_size, dtype=self.case.logs, device=self.device)

    def c_states(self, *, empty: bool = False) -> Tensor:
        """Room for the c before each chunk."""
        shape = (0,) if empty else self.c_shape
        return torch.empty(*shape, dtype=self.case.operand, device=self.device)

    def _prepare_forward(self, record: bool) -> tuple[Launch, ...]:
        """The walk, or gates, states and outputs; with a ``record`` for backward or without."""
        B, S, NH, DK, DV = self.layout[:5]
        cut, constants = self.cut, _forward_constants(self.case, self.layout.fresh, record)
        heads, sizes, (of_q, of_k, of_v, of_gates) = B * NH, (S, NH, DK**-0.5), self._strides()
        if cut.walk is not None:
            programs, numbers = count(DV, cut.walk.values) * heads, (*of_q, *of_k, *of_v, *of_gates, *sizes)
            return (Launch(mlstm_forward, (programs,), numbers, constants[mlstm_forward]),)
        assert cut.states is not None
        assert cut.outputs is not None
        gates = Launch(mlstm_gates, (heads,), (*of_gates, S, NH), constants[mlstm_gates])
        programs = count(DK, cut.states.keys) * count(DV, cut.states.values) * heads
        states = Launch(mlstm_states, (programs,), (*of_k, *of_v, S, NH), constants[mlstm_states])
        programs = count(DV, cut.outputs.values) * count(S, cut.outputs.rows) * heads
        outputs = Launch(mlstm_outputs, (programs,), (*of_q, *of_k, *of_v, *sizes), constants[mlstm_outputs])
        return gates, states, outputs

    def _prepare_backward(self, last: bool) -> tuple[Launch, ...]:
        """States and chunks, or states, roles and gates; with gradients of the ``last`` state or without."""
        B, S, NH, DK, DV = self.layout[:5]
        cut, constants = self.cut, _backward_constants(self.case, self.layout.fresh, last)
        heads, sizes, (of_q, of_k, of_v, _) = B * NH, (S, NH, DK**-0.5), self._strides()
        programs = count(DK, cut.backward_states.keys) * self.parts * heads
        states = Launch(mlstm_backward_states, (programs,), (*of_q, *sizes), constants[mlstm_backward_states])
        if cut.roles is None:
            each = min(EACH, max(1, self.NC * heads // ENOUGH))
            programs = count(self.NC, each) * heads
            numbers = (*of_q, *of_k, *of_v, S, NH, each, DK**-0.5)
            return states, Launch(mlstm_backward_chunks, (programs,), numbers, constants[mlstm_backward_chunks])
        programs = (2 * self.key_roles + count(DV, cut.roles.out)) * count(S, cut.roles.rows) * heads
        numbers = (*of_q, *of_k, *of_v, *sizes)
        roles = Launch(mlstm_backward_roles, (programs,), numbers, constants[mlstm_backward_roles])
        gates = Launch(mlstm_backward_gates, (self.NC * heads,), (S, NH), constants[mlstm_backward_gates])
        return states, roles, gates

    def _strides(self) -> tuple[tuple[int, ...], ...]:
        """Of q, k, v and the gates, over rows, steps and heads."""
        return tuple(strides[:3] for strides in self.layout[5:9])


_known = functools.lru_cache(LAYOUTS)(Passes)


def passes_over(q: Tensor, k: Tensor, v: Tensor, i: Tensor, fresh: bool, with_resets: bool, *options: Any) -> Passes:
    """Those of a call with these; ``f`` is laid out as ``i``."""
    B, S, NH, DK = q.shape
    strides: Any = q.stride(), k.stride(), v.stride(), i.stride()
    kinds: Any = q.dtype, i.dtype, q.device, fresh, with_resets
    layout = Layout(B, S, NH, DK, v.shape[3], *strides, *kinds, *options)
    return Passes(layout) if traced() else _known(layout)  # sizes that are traced as unknown are no key


@functools.cache
def plan_of(case: Case) -> Plan:
    return plan(case.DK, case.DV, case.operand, case.few, case.chunk_size)


def _tiles(case: Case, tiles: Tiles) -> dict[str, int]:
    """A kernel's own constants."""
    sizes = {"BK": tile(case.DK, tiles.keys), "BV": tile(case.DV, tiles.values)}
    return {**sizes, "L": plan_of(case).chunk, "num_warps": tiles.warps}


@functools.cache
def _forward_constants(case: Case, fresh: bool, record: bool) -> dict[Any, dict[str, Any]]:
    """Of each kernel that runs."""
    cut, constants = plan_of(case), case.constants
    begin = {"FRESH": fresh, "RECORD": record, "LOGS": tl.float64 if case.logs == torch.float64 else tl.float32}
    begin["CHUNKS"] = cut.gates // cut.chunk
    if cut.walk is not None:
        walk = {**_tiles(case, cut.walk), "STAGES": cut.walk.stages}
        return {mlstm_forward: {**constants, **begin, **walk}}
    assert cut.states is not None
    assert cut.outputs is not None
    gates = {"DK": case.DK, "L": cut.chunk, "WITH_RESETS": case.with_resets}
    products = {name: constants[name] for name in ("DK", "DV", "OPERAND", "PRECISION")}
    states, outputs = ({**_tiles(case, tiles), "STAGES": tiles.stages} for tiles in (cut.states, cut.outputs))
    return {
        mlstm_gates: {**gates, **begin},
        mlstm_states: {**products, **states, "FRESH": fresh},
        mlstm_outputs: {**constants, **outputs, "BM": cut.outputs.rows, "RECORD": record},
    }


@functools.cache
def _backward_constants(case: Case, fresh: bool, last: bool) -> dict[Any, dict[str, Any]]:
    """Of each kernel that runs."""
    cut, constants = plan_of(case), case.constants
    states = {**constants, **_tiles(case, cut.backward_states), "STAGES": cut.backward_states.stages}
    kernels = {mlstm_backward_states: {**states, "FRESH": fresh, "LAST": last, "ENTERING": cut.chunks is not None}}
    if cut.chunks is not None:
        chunks = {**_tiles(case, cut.chunks), "STAGES": cut.chunks.stages}
        return {**kernels, mlstm_backward_chunks: {**constants, **chunks}}
    assert cut.roles is not None
    parts, out = count(case.DV, cut.backward_states.values), tile(max(case.DK, case.DV), cut.roles.out)
    roles = {**_tiles(case, cut.roles), "STAGES": cut.roles.stages, "BM": cut.roles.rows, "OUT": out, "Y_TILES": parts}
    gates = {"DK": case.DK, "L": cut.chunk, "KEY_ROLES": count(case.DK, cut.roles.out), "Y_TILES": parts}
    return {
        **kernels,
        mlstm_backward_roles: {**constants, **roles},
        mlstm_backward_gates: {**gates, "WITH_RESETS": case.with_resets, "num_warps": 1},
    }


def _numbers(size: Any, *arguments: int) -> int:
    """What a function of kernels says of sizes."""
    found: int = size.fn(*arguments).value
    return found


def count(size: int, largest_tile: int) -> int:
    """The number of tiles, none wider than ``largest_tile``, that hold ``size``."""
    return -(-size // largest_tile)
