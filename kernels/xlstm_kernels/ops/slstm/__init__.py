"""sLSTM, the scalar memory that mixes its units: the entry function, which checks and picks the implementation.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

from typing import Any

import torch
from torch import Tensor

from ... import core
from ...checks import check_choice, check_positive
from ...state import sLSTMState
from .. import triton_backend
from ..checks import resolve_backend
from ..loops import check_arguments
from ..padding import from_own_steps, keep_where_empty, to_own_steps
from ..registration import autocasts
from .compiled import slstm_compiled
from .native import slstm_native
from .operators import Implementation
from .plan import fits


def _slstm_triton(*arguments: Any) -> tuple[Tensor, sLSTMState]:
    from .triton_launch import slstm_triton  # imports Triton, so only where it is asked for

    return slstm_triton(*arguments)


# The one that auto prefers comes last.
BACKENDS: dict[str, Implementation] = {"native": slstm_native, "compiled": slstm_compiled, "triton": _slstm_triton}


def slstm(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    state: sLSTMState | None = None,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    padding: str = "right",
    forget_gate: str = "sigmoid",
    recurrent_gradient_clip: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, sLSTMState]:
    """Run the sLSTM over a sequence of any length (one step included) and return outputs and the state after it.

    Pre-activations are ``gates + recurrent_weight @ h + bias``, per head; the input gate is exponential. Gradients are
    exact for every input and for the ``h``, ``c`` and ``n`` of ``state``; ``m`` is a scale and gets none.

    Args:
        gates: the input's share of the pre-activations in the order i, f, z, o, (B, S, 4, NH, DH).
        recurrent_weight: (4, NH, DH, DH), laid out [gate, head, out, in].
        bias: (4, NH, DH).
        state: where to continue; None is the empty memory.
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        lengths: integers (B,), the steps of each row that are its own, 0 to S; the others leave its state as it is,
            give ``h = 0``, get no gradient and may hold anything, NaN included. None: all steps.
        padding: the side on which the other steps lie, ``right`` or ``left``.
        forget_gate: ``sigmoid`` or ``exponential``.
        recurrent_gradient_clip: bounds, at every step, each entry of the gradient that flows back into ``h`` through
            ``recurrent_weight``, against explosion over long sequences; None leaves gradients exact.
        backend: ``triton`` (for CUDA tensors of at most 32 bits and head dims up to 1,024, 512 in float32, where Triton
            is installed and the device large enough),
            ``compiled`` (C, for CPU tensors of at most 32 bits, where the core was built), ``native`` (PyTorch),
            or ``auto``: the first of them that runs.

    Returns:
        ``h`` (B, S, NH, DH) in the dtype of ``gates``, and an ``sLSTMState`` in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes or devices do not fit, the sequence is empty, a length is not in 0 ... S, or an option or
            the backend is unknown or out of range.
        TypeError: ``resets`` is not boolean, ``lengths`` not integer, or dtypes or the kind of state do not fit.

    Source: Beck et al. 2024 (arXiv 2405.04517), equations 8 to 18.

    >>> h, state = slstm(gates, recurrent_weight)
    >>> h_next, state = slstm(gates_next, recurrent_weight, state=state)
    """
    check_arguments(gates, recurrent_weight, bias, state, sLSTMState, resets, lengths, padding)
    check_choice("forget_gate", forget_gate, ("sigmoid", "exponential"))
    if recurrent_gradient_clip is not None:
        check_positive("recurrent_gradient_clip", recurrent_gradient_clip)
    run = BACKENDS[resolve_backend(backend, _usable(gates, recurrent_weight))]
    (gates,), resets = to_own_steps((gates,), resets, lengths, padding)
    options = forget_gate == "exponential", recurrent_gradient_clip
    h, last = run(gates, recurrent_weight, bias, state, resets, lengths, *options)
    if state is not None:  # without one, rows that have no step end in the empty memory anyway
        last = keep_where_empty(state, last, lengths)
    return from_own_steps(h, lengths, padding), last


def _usable(gates: Tensor, recurrent_weight: Tensor) -> list[str]:
    """The backends that take these tensors, the fastest last."""
    names = ["native"]
    if core.runs(gates, recurrent_weight):
        names.append("compiled")
    factor = gates if autocasts(gates) else recurrent_weight  # whose type products have
    single = torch.float32 in (gates.dtype, factor.dtype)
    if triton_backend.runs(gates, recurrent_weight) and fits(gates.device, gates.shape[-1], single):
        names.insert(len(names) if gates.is_cuda else 0, "triton")  # on the CPU it is interpreted: by name alone
    return names
