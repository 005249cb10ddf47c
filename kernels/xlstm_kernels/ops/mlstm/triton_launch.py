"""mLSTM in Triton as a PyTorch operator: its kernels' launches, forward and backward.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, NC chunks.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ...state import mLSTMState
from ..registration import must_record, register_gradient, register_op, straight
from ..triton_launcher import launch, on_device_of
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
from .triton_kernels.shared import APART_NUMBERS, CHUNK_NUMBERS, STEP_NUMBERS

GATE_BLOCK = 2048  # steps of which a program holds the gates at once
EACH = 4  # chunks that a program goes through, at most
ENOUGH = 1056  # programs for a device: eight a multiprocessor
INPUTS = 13  # of the operator
PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}  # of products of float32


def mlstm_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState | None,
    resets: Tensor | None,
    chunk_size: int | None,
    normalize: bool,
) -> tuple[Tensor, mLSTMState]:
    """The contract of ``mlstm_native``, but for float64."""
    dtype = v.dtype
    operand = torch.promote_types(torch.promote_types(q.dtype, k.dtype), dtype)
    # States overflow float16: it takes the road of float32, with products of its own precision.
    precision = "tf32" if operand == torch.float16 else _precision_of_float32()
    q, k, v = (_with_dense_rows(x.to(operand)) for x in (q, k, v))
    if i.dtype != f.dtype or i.stride() != f.stride():
        i, f = i.float().contiguous(), f.float().contiguous()
    c, n, m = (None, None, None) if state is None else (x.contiguous() for x in state)
    m = None if m is None else m.detach()
    resets = None if resets is None else resets.contiguous()
    record = must_record(q, k, v, i, f, *(x for x in (c, n) if x is not None))
    h, *last, _, _ = _run(q, k, v, i, f, c, n, m, resets, chunk_size, normalize, precision, record)
    return h.to(dtype), mLSTMState(*last)


@torch.compiler.assume_constant_result  # a compiler cannot look into PyTorch's settings
def _precision_of_float32() -> str:
    return PRECISIONS[torch.get_float32_matmul_precision()]


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # h, c, n and m, then the tape and the c of chunks


@dataclass(frozen=True)
class _Case:
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


def _case(
    q: Tensor, v: Tensor, resets: Tensor | None, chunk_size: int | None, normalize: bool, precision: str
) -> _Case:
    B, S, NH, DK = q.shape
    few = bool(few_and_long(B * NH, S))
    # A size that is traced as unknown becomes the one at hand: that of a head is compiled for.
    return _Case(int(DK), int(v.shape[3]), q.dtype, few, resets is not None, chunk_size, normalize, precision)


@functools.cache
def _plan(case: _Case) -> Plan:
    return plan(case.DK, case.DV, case.operand, case.few, case.chunk_size)


def _tiles(case: _Case, tiles: Tiles) -> dict[str, int]:
    """A kernel's own constants."""
    sizes = {"BK": tile(case.DK, tiles.keys), "BV": tile(case.DV, tiles.values)}
    return {**sizes, "L": _plan(case).chunk, "num_warps": tiles.warps}


@functools.cache
def _forward_constants(case: _Case, fresh: bool, record: bool) -> dict[Any, dict[str, Any]]:
    """Of each kernel that runs."""
    cut, constants = _plan(case), case.constants
    begin = {"FRESH": fresh, "LOGS": tl.float64 if case.logs == torch.float64 else tl.float32}
    if cut.walk is not None:
        walk = {**_tiles(case, cut.walk), "STAGES": cut.walk.stages}
        return {mlstm_forward: {**constants, **begin, **walk, "RECORD": record}}
    assert cut.states is not None
    assert cut.outputs is not None
    gates = {"DK": case.DK, "L": cut.chunk, "CHUNKS": GATE_BLOCK // cut.chunk, "WITH_RESETS": case.with_resets}
    products = {name: constants[name] for name in ("DK", "DV", "OPERAND", "PRECISION")}
    states, outputs = ({**_tiles(case, tiles), "STAGES": tiles.stages} for tiles in (cut.states, cut.outputs))
    return {
        mlstm_gates: {**gates, **begin},
        mlstm_states: {**products, **states, "FRESH": fresh},
        mlstm_outputs: {**constants, **outputs, "BM": cut.outputs.rows, "RECORD": record},
    }


@functools.cache
def _backward_constants(case: _Case, fresh: bool, last: bool) -> dict[Any, dict[str, Any]]:
    """Of each kernel that runs."""
    cut, constants = _plan(case), case.constants
    states = {**constants, **_tiles(case, cut.backward_states), "STAGES": cut.backward_states.stages}
    kernels = {mlstm_backward_states: {**states, "FRESH": fresh, "LAST": last}}
    if cut.chunks is not None:
        chunks = {**_tiles(case, cut.chunks), "STAGES": cut.chunks.stages}
        return {**kernels, mlstm_backward_chunks: {**constants, **chunks}}
    assert cut.roles is not None
    parts, out = _count(case.DV, cut.backward_states.values), tile(max(case.DK, case.DV), cut.roles.out)
    roles = {**_tiles(case, cut.roles), "STAGES": cut.roles.stages, "BM": cut.roles.rows, "OUT": out, "Y_TILES": parts}
    gates = {"DK": case.DK, "L": cut.chunk, "KEY_ROLES": _count(case.DK, cut.roles.out), "Y_TILES": parts}
    return {
        **kernels,
        mlstm_backward_roles: {**constants, **roles},
        mlstm_backward_gates: {**gates, "WITH_RESETS": case.with_resets, "num_warps": 1},
    }


def _count(size: int, largest_tile: int) -> int:
    """The number of tiles, none wider than ``largest_tile``, that hold ``size``."""
    return -(-size // largest_tile)


def _tape(case: _Case, q: Tensor) -> tuple[Tensor, Tensor]:
    """Room for numbers of steps and chunks in one flat array, as shared.py says, and for the c of chunks."""
    (B, S, NH, DK), cut = q.shape, _plan(case)
    NC = _count(S, cut.chunk)
    steps = STEP_NUMBERS.value + (APART_NUMBERS.value + case.with_resets if cut.walk is None else 0)
    numbers = B * NH * (steps * S + (CHUNK_NUMBERS.value + DK) * NC)
    return q.new_empty(numbers, dtype=case.logs), q.new_empty((B, NH, NC, DK, case.DV), dtype=case.operand)


def _outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    resets: Tensor | None,
    chunk_size: int | None,
    normalize: bool,
    precision: str,
    record: bool,
) -> _Outputs:
    """Room for the outputs."""
    (B, _, NH, DK), DV = q.shape, v.shape[3]
    case = _case(q, v, resets, chunk_size, normalize, precision)
    h = v.new_empty(v.shape)
    c_last, n_last, m_last = (
        q.new_empty(shape, dtype=torch.float32) for shape in ((B, NH, DK, DV), (B, NH, DK), (B, NH))
    )
    tape, c_states = _tape(case, q) if record else (q.new_empty(0, dtype=x) for x in (case.logs, case.operand))
    return h, c_last, n_last, m_last, tape, c_states


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    resets: Tensor | None,
    chunk_size: int | None,
    normalize: bool,
    precision: str,
    record: bool,
) -> _Outputs:
    outputs = _outputs(q, k, v, i, f, c, n, m, resets, chunk_size, normalize, precision, record)
    h, c_last, n_last, m_last, tape, c_states = outputs
    B, S, NH, DK = q.shape
    case = _case(q, v, resets, chunk_size, normalize, precision)
    heads, cut, constants = B * NH, _plan(case), _forward_constants(case, c is None, record)
    of_q, of_k, of_v, of_gates = (x.stride()[:3] for x in (q, k, v, i))
    sizes = (S, NH, DK**-0.5)
    with on_device_of(q):
        if cut.walk is not None:
            inputs, strides = (q, k, v, i, f, resets, c, n, m), (*of_q, *of_k, *of_v, *of_gates)
            programs = _count(case.DV, cut.walk.values) * heads
            launch(mlstm_forward, (programs,), (*inputs, *outputs, *strides, *sizes), constants[mlstm_forward])
            return outputs
        assert cut.states is not None
        assert cut.outputs is not None
        if not record:  # the launches pass it to each other
            tape, c_states = _tape(case, q)
        gates = (i, f, resets, m, m_last, tape, *of_gates, S, NH)
        launch(mlstm_gates, (heads,), gates, constants[mlstm_gates])
        programs = _count(DK, cut.states.keys) * _count(case.DV, cut.states.values) * heads
        states = (k, v, c, n, c_last, n_last, tape, c_states, *of_k, *of_v, S, NH)
        launch(mlstm_states, (programs,), states, constants[mlstm_states])
        programs = _count(case.DV, cut.outputs.values) * _count(S, cut.outputs.rows) * heads
        steps = (q, k, v, h, tape, c_states, *of_q, *of_k, *of_v, *sizes)
        launch(mlstm_outputs, (programs,), steps, constants[mlstm_outputs])
    return outputs


def _gradients(
    dh: Tensor,
    dc: Tensor | None,
    dn: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    resets: Tensor | None,
    h: Tensor,
    tape: Tensor,
    c_states: Tensor,
    chunk_size: int | None,
    normalize: bool,
    precision: str,
    fresh: bool,
) -> list[Tensor]:
    """Room for the gradients of q, k, v, i, f and, of a state that was given, c and n."""
    of_steps = [x.new_empty(x.shape) for x in (q, k, v, i, f)]
    if fresh:
        return of_steps
    (B, _, NH, DK), DV = q.shape, v.shape[3]
    return of_steps + [q.new_empty(shape, dtype=torch.float32) for shape in ((B, NH, DK, DV), (B, NH, DK))]


def _backward(
    dh: Tensor,
    dc: Tensor | None,
    dn: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    resets: Tensor | None,
    h: Tensor,
    tape: Tensor,
    c_states: Tensor,
    chunk_size: int | None,
    normalize: bool,
    precision: str,
    fresh: bool,
) -> list[Tensor]:
    gradients = _gradients(
        dh, dc, dn, q, k, v, i, f, resets, h, tape, c_states, chunk_size, normalize, precision, fresh
    )
    dq, dk, dv, di, df = gradients[:5]
    dc_first, dn_first = (None, None) if fresh else gradients[5:]
    (B, S, NH, DK), DV = q.shape, v.shape[3]
    case, last = _case(q, v, resets, chunk_size, normalize, precision), dc is not None or dn is not None
    heads, cut, constants = B * NH, _plan(case), _backward_constants(case, fresh, last)
    of_q, of_k, of_v, of_gates = (x.stride()[:3] for x in (q, k, v, i))
    NC, sizes = _count(S, cut.chunk), (S, NH, DK**-0.5)
    parts = _count(DV, cut.backward_states.values)  # that dn and the denominator's share come in
    key_roles = 0 if cut.roles is None else _count(DK, cut.roles.out)
    numbers = parts * (S + NC * DK) + key_roles * (3 * S + NC)
    passed = q.new_empty(heads * numbers, dtype=torch.float32)
    dc_states = c_states.new_empty(c_states.shape)
    dn_parts = dn_first if parts == 1 or dn_first is None else dn_first.new_empty(parts, *dn_first.shape)
    dh = dh.contiguous()
    if last:
        dc = q.new_zeros((B, NH, DK, DV), dtype=torch.float32) if dc is None else dc.contiguous()
        dn = q.new_zeros((B, NH, DK), dtype=torch.float32) if dn is None else dn.contiguous()
    with on_device_of(q):
        states = (q, resets, h, dh, dc, dn, tape, passed, dc_states, dc_first, dn_parts, *of_q, *sizes)
        programs = _count(DK, cut.backward_states.keys) * parts * heads
        launch(mlstm_backward_states, (programs,), states, constants[mlstm_backward_states])
        if cut.roles is None:
            chunks = (q, k, v, f, resets, dh, tape, c_states, passed, dc_states, dq, dk, dv, di, df)
            strides = (*of_q, *of_k, *of_v, *of_gates)
            each = min(EACH, max(1, NC * heads // ENOUGH))
            counts = (S, NH, each, DK**-0.5)
            programs = _count(NC, each) * heads
            launch(mlstm_backward_chunks, (programs,), (*chunks, *strides, *counts), constants[mlstm_backward_chunks])
        else:
            steps = (q, k, v, dh, tape, c_states, passed, dc_states, dq, dk, dv, *of_q, *of_k, *of_v, *sizes)
            programs = (2 * key_roles + _count(DV, cut.roles.out)) * _count(S, cut.roles.rows) * heads
            launch(mlstm_backward_roles, (programs,), steps, constants[mlstm_backward_roles])
            launch(
                mlstm_backward_gates,
                (NC * heads,),
                (f, tape, passed, di, df, *of_gates, S, NH),
                constants[mlstm_backward_gates],
            )
    if dn_first is not None and dn_parts is not None and dn_parts is not dn_first:
        torch.sum(dn_parts, 0, out=dn_first)
    return gradients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    q, k, v, i, f, c, _, _, resets, *ctx.options, _ = inputs
    h, _, _, m, tape, c_states = output
    ctx.fresh = c is None
    ctx.mark_non_differentiable(m, tape, c_states)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(q, k, v, i, f, resets, h, tape, c_states)


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    dh, dc, dn = gradients[:3]  # there is none of m and of the tape
    q, k, v, i, f, resets, h, tape, c_states = ctx.saved_tensors
    dh = torch.zeros_like(h) if dh is None else dh
    arguments = (dh, dc, dn, q, k, v, i, f, resets, h, tape, c_states, *ctx.options, ctx.fresh)
    found = _run_backward(*arguments)
    return *found, *(None,) * (INPUTS - len(found))


# For all devices: Triton's interpreter runs the same kernels on the CPU.
_operator = register_op("mlstm_triton", _forward, _outputs)
_run = register_gradient(_operator, _setup_context, _differentiate)
_run_backward = straight(register_op("mlstm_triton_backward", _backward, _gradients))
