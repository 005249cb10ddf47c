"""sLSTM in Triton: room for what its kernels write, the operator that tracing sees, and the straight way without it.

Forward is one launch; backward is one more, and two for the weights' gradients, a matrix product. Gates, recurrent
weights and h keep their own types, in which they enter products; all else is float32. States enter and leave as
(c, n, m): the kernels turn them into averages and back.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...state import sLSTMState
from ..registration import differentiated, must_record, register_gradient, register_op, traced
from ..triton_launcher import on_device_of
from .triton_passes import Passes, Walk, passes_over

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # h, then the last h, c, n and m, then the tape
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of gates, weight, bias, h, c and n


def slstm_triton(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    state: sLSTMState | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
) -> tuple[Tensor, sLSTMState]:
    """The contract of ``slstm_native``, but for float64."""
    before: tuple[Tensor | None, ...] = (None,) * 4 if state is None else state
    arrays: tuple[Any, ...] = (gates, _as_factor(recurrent_weight), bias, *before, resets, lengths)
    record = must_record(*arrays[:6])
    outputs: tuple[Tensor, ...]
    if traced():
        arguments: tuple[Any, ...] = (*arrays, exponential_forget, clip, record)
        outputs = _operator(*arguments)
    else:
        arrays = _in_order(*arrays)
        arguments = (*arrays, _passes(exponential_forget, clip, *arrays), record)
        outputs = (_record_forward if record else _run_forward)(*arguments)
    h, *last = outputs[:5]
    return h, sLSTMState(*last)


def _as_factor(weight: Tensor) -> Tensor:
    """The weight in the type in which autocast, where it is on, has matrix products done."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def _in_order(gates: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Contiguous arrays, but gates whose strides are multiples of DH.

    So the kernel knows their alignment without being compiled for them.
    """
    DH = gates.shape[-1]
    if gates.stride(-1) != 1 or any(stride % DH for stride in gates.stride()[:4]):
        gates = gates.contiguous()
    return gates, *(None if x is None else x.contiguous() for x in others)


def _room(passes: Passes) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For the results; sizes one by one, as PyTorch takes twice as long to read a tuple of them."""
    h = torch.empty(*passes.shape, dtype=passes.layout.dtype, device=passes.device)
    h_last = torch.empty(*passes.state_shape, dtype=torch.float32, device=passes.device)
    c, n, m = (torch.empty_like(h_last) for _ in range(3))
    return h, h_last, c, n, m


def _passes(
    exponential_forget: bool,
    clip: float | None,
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h_first: Tensor | None,
    _c: Tensor | None,
    _n: Tensor | None,
    _m: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
) -> Passes:
    B, S, _, NH, DH = gates.shape
    options = exponential_forget, clip
    return passes_over(
        (B, S, NH, DH), gates.stride(), gates, recurrent_weight, bias, h_first, resets, lengths, *options
    )


def _run_forward(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h_first: Tensor | None,
    c_first: Tensor | None,
    n_first: Tensor | None,
    m_first: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    passes: Passes,
    record: bool,
) -> tuple[Any, ...]:
    """The results and the tape, None where there is no ``record``."""
    results, tape = _room(passes), passes.tape() if record else None
    first = h_first, c_first, n_first, m_first
    arrays = (gates, recurrent_weight, bias, *first, _flags(resets), lengths, *results, tape)
    _walk(passes.forward(record), arrays, exchange=results[0])
    return *results, tape


def _walk(walk: Walk, arrays: tuple[Tensor | None, ...], *, exchange: Tensor) -> None:
    """Go through time; programs that share a head wait for each other in ``exchange``."""
    if walk.shared:
        exchange.view(torch.int32 if exchange.dtype == torch.float32 else torch.int16).fill_(-1)  # ABSENT
    with on_device_of(exchange):
        for launch in walk.launches:
            launch(*arrays)


def _flags(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.view(torch.int8)


def _run_backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    dn_last: Tensor | None,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h: Tensor,
    tape: Tensor,
    h_first: Tensor | None,
    c_first: Tensor | None,
    n_first: Tensor | None,
    c_last: Tensor,
    n_last: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    passes: Passes,
) -> tuple[Tensor | None, ...]:
    """The gradients of gates, weight, bias, h, c and n, but of what is None."""
    B, S, NH, DH = passes.shape
    dgates, dweight = h.new_empty(B, S, 4, NH, DH), torch.empty_like(recurrent_weight)
    dbias, *dfirst = (None if x is None else torch.empty_like(x) for x in (bias, h_first, c_first, n_first))
    given, resets = (dh, dh_last, dc_last, dn_last), _flags(resets)
    inputs = (*map(_contiguous, given), recurrent_weight, h, tape, c_first, n_first, c_last, n_last, resets, lengths)
    _walk(passes.backward(dh_last is not None), (*inputs, dgates, *dfirst), exchange=dgates)
    product = passes.product
    parts = torch.empty(*product.shape, dtype=torch.float32, device=passes.device)
    with on_device_of(h):
        product.parts(dgates, h, h_first, resets, parts)
        product.sum(parts, dweight, dbias)
    return dgates, dweight, dbias, *dfirst


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: _Outputs) -> None:
    """What ``_run_forward`` took and gave, as far as backward reads it."""
    _, weight, bias, h_first, c_first, n_first, _, resets, lengths, ctx.passes, _ = inputs
    h, _, c_last, n_last, m_last, tape = outputs
    ctx.mark_non_differentiable(m_last, tape)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(weight, bias, h, tape, h_first, c_first, n_first, c_last, n_last, resets, lengths)


def _differentiate(ctx: Any, dh: Tensor | None, *of_last: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of all inputs; there is no gradient of m."""
    saved = ctx.saved_tensors
    _, bias, h, _, h_first, c_first, n_first, c_last, *_ = saved
    dlast = of_last[:3]
    if any(x is not None for x in dlast):
        dlast = tuple(torch.zeros_like(c_last) if x is None else x for x in dlast)
    run: Callable[..., tuple[Tensor | None, ...]] = _run_backward
    options: tuple[Any, ...] = (ctx.passes,)
    if traced():
        run, options = _backward_operator, ctx.passes.layout.options
    dgates, dweight, *others = run(torch.zeros_like(h) if dh is None else dh, *dlast, *saved, *options)
    asked = zip((bias, h_first, c_first, n_first), others, strict=True)
    found = (dgates, dweight, *(None if x is None else dx for x, dx in asked))
    return *found, *(None,) * (len(ctx.needs_input_grad) - len(found))


_record_forward = differentiated(_run_forward, _save, _differentiate, num_results=5)


def _forward(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h_first: Tensor | None,
    c_first: Tensor | None,
    n_first: Tensor | None,
    m_first: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
    record: bool,
) -> _Outputs:
    first = h_first, c_first, n_first, m_first
    arrays = _in_order(gates, recurrent_weight, bias, *first, resets, lengths)
    passes = _passes(exponential_forget, clip, *arrays)
    arguments: tuple[Any, ...] = (*arrays, passes, record)
    h, h_last, c, n, m, tape = _run_forward(*arguments)
    return h, h_last, c, n, m, tape if record else passes.tape(empty=True)


def _outputs(*inputs: Any) -> _Outputs:
    *arrays, exponential_forget, clip, record = inputs
    passes = _passes(exponential_forget, clip, *arrays)
    return *_room(passes), passes.tape(empty=not record)


def _backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    dn_last: Tensor | None,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h: Tensor,
    tape: Tensor,
    h_first: Tensor | None,
    c_first: Tensor | None,
    n_first: Tensor | None,
    c_last: Tensor,
    n_last: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
) -> _Gradients:
    given = (recurrent_weight, bias, h, tape, h_first, c_first, n_first, c_last, n_last, resets, lengths)
    passes = passes_over(h.shape, (), h, recurrent_weight, bias, h_first, resets, lengths, exponential_forget, clip)
    arguments: tuple[Any, ...] = (dh, dh_last, dc_last, dn_last, *map(_contiguous, given), passes)
    found = _run_backward(*arguments)
    dgates, dweight, dbias, dh_first, dc_first, dn_first = (h.new_empty(0) if x is None else x for x in found)
    return dgates, dweight, dbias, dh_first, dc_first, dn_first


def _gradients(*inputs: Any) -> _Gradients:
    _, _, _, _, weight, bias, h, _, h_first, c_first, n_first, *_ = inputs
    B, S, NH, DH = h.shape
    of_others = (h.new_empty(0) if x is None else x.new_empty(x.shape) for x in (bias, h_first, c_first, n_first))
    dbias, dh, dc, dn = of_others
    return h.new_empty(B, S, 4, NH, DH), weight.new_empty(weight.shape), dbias, dh, dc, dn


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    *given, exponential_forget, clip, record = inputs
    arrays = _in_order(*given)
    _save(ctx, (*arrays, _passes(exponential_forget, clip, *arrays), record), output)


# For all devices: Triton's interpreter runs the same kernels on the CPU.
_operator = register_op("slstm_triton", _forward, _outputs)
_backward_operator = register_op("slstm_triton_backward", _backward, _gradients)
register_gradient(_operator, _setup_context, _differentiate, num_results=5)
