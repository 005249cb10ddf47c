"""The plain LSTM in the layouts of the sLSTM, to tell by ablation what the sLSTM's memory adds.

Shapes: B batch, S sequence, NH heads, DH head dim; inside the loop heads lead: (NH, B, DH).
"""

import torch
from torch import Tensor

from ..state import LSTMState, initial_lstm_state
from .loops import check_arguments, fill_in, mix, mixing_matrices, step_flags, step_inputs
from .padding import from_own_steps, to_own_steps, valid_steps
from .registration import without_autocast


def lstm(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    state: LSTMState | None = None,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    padding: str = "right",
) -> tuple[Tensor, LSTMState]:
    """Run an LSTM over a sequence of any length (one step included) and return outputs and the state after it.

    A loop in PyTorch on any device, exact in all gradients. With one head it is ``torch.nn.LSTM``, whose weights
    ``weight_hh_l0`` are the four gates one below the other in the same order.

    Args:
        gates: the input's share of the pre-activations in the order i, f, z, o, (B, S, 4, NH, DH).
        recurrent_weight: (4, NH, DH, DH), laid out [gate, head, out, in].
        bias: (4, NH, DH).
        state: where to continue; None is ``h = c = 0``.
        resets, lengths, padding: as in ``slstm``.

    Returns:
        ``h`` (B, S, NH, DH) in the dtype of ``gates``, and an ``LSTMState`` in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes or devices do not fit, the sequence is empty, or a length is not in 0 ... S.
        TypeError: ``resets`` is not boolean, ``lengths`` not integer, or dtypes or the kind of state do not fit.

    >>> h, state = lstm(gates, recurrent_weight)
    >>> h_next, state = lstm(gates_next, recurrent_weight, state=state)
    """
    check_arguments(gates, recurrent_weight, bias, state, LSTMState, resets, lengths, padding)
    bias, state = fill_in(gates, bias, state, initial_lstm_state)
    (own_gates,), resets = to_own_steps((gates,), resets, lengths, padding)
    dtype, S = state.c.dtype, gates.shape[1]
    valid = None if lengths is None else valid_steps(lengths, S)
    h, last = _run(own_gates.to(dtype), recurrent_weight.to(dtype), bias, state, resets, valid)
    return from_own_steps(h.to(gates.dtype), lengths, padding), last


@without_autocast
def _run(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    state: LSTMState,
    resets: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, LSTMState]:
    S, matrices = gates.shape[1], mixing_matrices(recurrent_weight)
    h, c = (x.transpose(0, 1) for x in state)  # (NH, B, DH)
    outputs = []
    for step, reset, own in zip(step_inputs(gates, bias), step_flags(resets, S), step_flags(valid, S), strict=True):
        if reset is not None:
            h, c = h.masked_fill(reset, 0.0), c.masked_fill(reset, 0.0)
        i, f, z, o = mix(step, h, matrices)
        c_after = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h_after = torch.sigmoid(o) * torch.tanh(c_after)
        outputs.append(h_after if own is None else h_after.masked_fill(~own, 0.0))
        h, c = (h_after, c_after) if own is None else (torch.where(own, h_after, h), torch.where(own, c_after, c))
    return torch.stack(outputs).permute(2, 0, 1, 3), LSTMState(h.transpose(0, 1), c.transpose(0, 1))
