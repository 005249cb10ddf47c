"""How an implementation of the sLSTM becomes an operator, and how states enter and leave it.

Shapes: B batch, S sequence, NH heads, DH head dim. Every implementation is a pair of functions,

    forward(gates, recurrent_weight, bias, state, resets, lengths, exponential_forget, clip, record) -> h, last, tape
    backward(dh, dlast, recurrent_weight, state, h, tape, resets, lengths, exponential_forget, clip)
        -> dgates, dweight, dbias, dstate

on tensors of one dtype with the layouts of ``slstm``, except that ``state``, ``last`` and their gradients are
(4, B, NH, DH): h, y, lam and m, of which m has no gradient (average.py says what they are). Rows are right-padded;
outside of a row's own steps gates are zero and no reset is set. The one exception is Triton's, which takes and gives
c and n as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...state import initial_slstm_state, sLSTMState
from ..loops import fill_in
from ..registration import must_record, register_gradient, register_op, straight
from .average import from_average, to_average

Outputs = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]
Implementation = Callable[
    [Tensor, Tensor, Tensor | None, sLSTMState | None, Tensor | None, Tensor | None, bool, float | None],
    tuple[Tensor, sLSTMState],
]


def register_slstm(
    name: str,
    forward: Callable[..., Outputs],
    forward_fake: Callable[..., Outputs],
    backward: Callable[..., Gradients],
    backward_fake: Callable[..., Gradients],
    **device: str,
) -> Implementation:
    """Make the operators ``<name>`` and ``<name>_backward``; return the function that runs them from state to state."""
    forward_op = register_op(name, forward, forward_fake, **device)
    run_backward = straight(register_op(f"{name}_backward", backward, backward_fake, **device))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        _, weight, _, state, resets, lengths, *ctx.options, _ = inputs
        h, _, tape = output
        ctx.mark_non_differentiable(tape)
        ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
        ctx.save_for_backward(weight, state, h, tape, resets, lengths)

    def differentiate(ctx: Any, dh: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, state, h, tape, resets, lengths = ctx.saved_tensors
        dh = torch.zeros_like(h) if dh is None else dh
        dlast = torch.zeros_like(state) if dlast is None else dlast
        gradients = run_backward(dh, dlast, weight, state, h, tape, resets, lengths, *ctx.options)
        return *gradients, None, None, None, None, None

    def run(
        gates: Tensor,
        recurrent_weight: Tensor,
        bias: Tensor | None,
        state: sLSTMState | None,
        resets: Tensor | None,
        lengths: Tensor | None,
        exponential_forget: bool,
        clip: float | None,
    ) -> tuple[Tensor, sLSTMState]:
        bias, state = fill_in(gates, bias, state, initial_slstm_state)
        dtype, m = state.m.dtype, state.m.detach()
        y, lam = to_average(state.c, state.n, m, relative=exponential_forget)
        begin = torch.stack((state.h, y, lam, m))
        inputs = (gates.to(dtype), recurrent_weight.to(dtype), bias, begin)
        h, last = run_forward(*inputs, resets, lengths, exponential_forget, clip, must_record(*inputs))
        h_last, y, lam, m = last.unbind(0)
        m = m.detach()
        c, n = from_average(y, lam, m, relative=exponential_forget)
        return h.to(gates.dtype), sLSTMState(h_last, c, n, m)

    run_forward = register_gradient(forward_op, setup_context, differentiate, num_results=2)
    return run
