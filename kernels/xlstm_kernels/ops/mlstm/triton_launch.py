"""mLSTM in Triton: room for what its kernels write, the operator that tracing sees, and the straight way without it.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, NC chunks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...state import mLSTMState
from ..registration import differentiated, must_record, register_gradient, register_op, traced
from ..triton_launcher import on_device_of
from .triton_passes import Passes, passes_over

PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}  # of products of float32

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # h, c, n and m, then the tape and the c of chunks


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
    dtype = operand = v.dtype
    if not q.dtype == k.dtype == dtype:
        operand = torch.promote_types(torch.promote_types(q.dtype, k.dtype), dtype)
        q, k, v = q.to(operand), k.to(operand), v.to(operand)
    # States overflow float16: it takes the road of float32, with products of its own precision.
    precision = "tf32" if operand == torch.float16 else _precision_of_float32()
    q, k, v = _with_dense_rows(q), _with_dense_rows(k), _with_dense_rows(v)
    if i.dtype != f.dtype or i.stride() != f.stride():
        i, f = i.float().contiguous(), f.float().contiguous()
    c, n, m = (None, None, None) if state is None else (x.contiguous() for x in state)
    m = None if m is None else m.detach()
    resets = None if resets is None else resets.contiguous()
    record, options = must_record(q, k, v, i, f, c, n), (chunk_size, normalize, precision)
    arrays = q, k, v, i, f, c, n, m, resets
    if traced():
        outputs = _operator(*arrays, *options, record)
    else:
        passes = passes_over(q, k, v, i, c is None, resets is not None, *options)
        outputs = (_record_forward if record else _run_forward)(*arrays, passes, record)
    h, c, n, m = outputs[:4]
    return h if operand == dtype else h.to(dtype), mLSTMState(c, n, m)


@torch.compiler.assume_constant_result  # a compiler cannot look into PyTorch's settings
def _precision_of_float32() -> str:
    return PRECISIONS[torch.get_float32_matmul_precision()]


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _room(passes: Passes, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For the results; sizes one by one, as PyTorch takes twice as long to read a tuple of them."""
    c, n, m = (torch.empty(*shape, dtype=torch.float32, device=passes.device) for shape in passes.state_shapes)
    return torch.empty_like(v, memory_format=torch.contiguous_format), c, n, m


def _run_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    resets: Tensor | None,
    passes: Passes,
    record: bool,
) -> _Outputs:
    """The results and the tape, whose c is something else where there is no ``record``."""
    h, c_last, n_last, m_last = _room(passes, v)
    walk, *apart = passes.forward(record)
    tape, c_states = passes.tape(), passes.c_states() if record or apart else h  # any, where nothing reads it
    with on_device_of(q):
        if apart:
            gates, (states, steps) = walk, apart
            gates(i, f, resets, m, m_last, tape)
            states(k, v, c, n, c_last, n_last, tape, c_states)
            steps(q, k, v, h, tape, c_states)
        else:
            walk(q, k, v, i, f, resets, c, n, m, h, c_last, n_last, m_last, tape, c_states)
    return h, c_last, n_last, m_last, tape, c_states


def _room_back(passes: Passes, *operands: Tensor) -> list[Tensor]:
    """For the gradients of q, k, v, i, f, which is as i, and, of a state that was given, c and n."""
    of_operands = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (*operands, operands[-1])]
    of_state = () if passes.layout.fresh else passes.state_shapes[:2]
    return of_operands + [torch.empty(*shape, dtype=torch.float32, device=passes.device) for shape in of_state]


def _run_backward(
    dh: Tensor,
    dc: Tensor | None,
    dn: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    h: Tensor,
    tape: Tensor,
    c_states: Tensor,
    passes: Passes,
) -> list[Tensor]:
    gradients, last = _room_back(passes, q, k, v, i), dc is not None or dn is not None
    dq, dk, dv, di, df, *of_state = gradients
    dc_first, dn_first = of_state or (None, None)
    passed = torch.empty(passes.numbers_back, dtype=torch.float32, device=passes.device)
    dc_states = torch.empty_like(c_states)
    dn_parts = dn_first if passes.parts == 1 or dn_first is None else dn_first.new_empty(passes.parts, *dn_first.shape)
    dh = dh.contiguous()
    if last:
        given = zip((dc, dn), passes.state_shapes, strict=False)
        dc, dn = (dh.new_zeros(s, dtype=torch.float32) if dx is None else dx.contiguous() for dx, s in given)
    states, *rest = passes.backward(last)
    with on_device_of(q):
        states(q, h, dh, dc, dn, tape, c_states, passed, dc_states, dc_first, dn_parts)
        if len(rest) == 1:
            rest[0](q, k, v, dh, tape, c_states, passed, dc_states, dq, dk, dv, di, df)
        else:
            roles, gates = rest
            roles(q, k, v, dh, tape, c_states, passed, dc_states, dq, dk, dv)
            gates(tape, passed, di, df)
    if dn_first is not None and dn_parts is not None and dn_parts is not dn_first:
        torch.sum(dn_parts, 0, out=dn_first)
    return gradients


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: _Outputs) -> None:
    """What ``_run_forward`` took and gave, as far as backward reads it."""
    q, k, v, i, *_, ctx.passes, _ = inputs
    h, _, _, m, tape, c_states = outputs
    ctx.mark_non_differentiable(m, tape, c_states)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(q, k, v, i, h, tape, c_states)


def _differentiate(
    ctx: Any, dh: Tensor | None, dc: Tensor | None, dn: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    """Of all inputs; there is no gradient of m."""
    saved, passes = ctx.saved_tensors, ctx.passes
    run: Callable[..., list[Tensor]] = _run_backward
    options: tuple[Any, ...] = (passes,)
    if traced():
        run, options = _backward_operator, (*passes.layout.options, passes.layout.fresh, passes.layout.with_resets)
    found = run(torch.zeros_like(saved[4]) if dh is None else dh, dc, dn, *saved, *options)
    return *found, *(None,) * (len(ctx.needs_input_grad) - len(found))


_record_forward = differentiated(_run_forward, _save, _differentiate, num_results=4)


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
    passes = passes_over(q, k, v, i, c is None, resets is not None, chunk_size, normalize, precision)
    outputs = _run_forward(q, k, v, i, f, c, n, m, resets, passes, record)
    h, c_last, n_last, m_last, numbers, c_states = outputs
    if not record:  # outputs of an operator share no memory
        numbers, c_states = passes.tape(empty=True), passes.c_states(empty=True)
    return h, c_last, n_last, m_last, numbers, c_states


def _outputs(*inputs: Any) -> _Outputs:
    q, k, v, i, _, c, _, _, resets, *options, record = inputs
    passes = passes_over(q, k, v, i, c is None, resets is not None, *options)
    return *_room(passes, v), passes.tape(empty=not record), passes.c_states(empty=not record)


def _backward(
    dh: Tensor,
    dc: Tensor | None,
    dn: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    h: Tensor,
    tape: Tensor,
    c_states: Tensor,
    chunk_size: int | None,
    normalize: bool,
    precision: str,
    fresh: bool,
    with_resets: bool,
) -> list[Tensor]:
    passes = passes_over(q, k, v, i, fresh, with_resets, chunk_size, normalize, precision)
    return _run_backward(dh, dc, dn, q, k, v, i, h, tape, c_states, passes)


def _gradients(*inputs: Any) -> list[Tensor]:
    _, _, _, q, k, v, i, _, _, _, *options, fresh, with_resets = inputs
    return _room_back(passes_over(q, k, v, i, fresh, with_resets, *options), q, k, v, i)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    q, k, v, i, f, c, n, m, resets, *options, record = inputs
    passes = passes_over(q, k, v, i, c is None, resets is not None, *options)
    _save(ctx, (q, k, v, i, f, c, n, m, resets, passes, record), output)


# For all devices: Triton's interpreter runs the same kernels on the CPU.
_operator = register_op("mlstm_triton", _forward, _outputs)
_backward_operator: Callable[..., list[Tensor]] = register_op("mlstm_triton_backward", _backward, _gradients)
register_gradient(_operator, _setup_context, _differentiate, num_results=4)
