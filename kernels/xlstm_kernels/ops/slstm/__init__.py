"""sLSTM, the scalar memory that mixes its units: the entry function, which checks and picks the implementation.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

import torch
from torch import Tensor

from ... import core
from ...state import initial_slstm_state, sLSTMState
from ..checks import check_dtypes, check_resets, check_shape, resolve_backend
from .compiled import slstm_compiled
from .native import slstm_recurrent

BACKENDS = {"native": slstm_recurrent, "compiled": slstm_compiled}  # the one that auto prefers comes last


def slstm(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None = None,
    state: sLSTMState | None = None,
    *,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, sLSTMState]:
    """Run the sLSTM over a sequence of any length (one step included) and return outputs and the state after it.

    Pre-activations are ``gates + recurrent_weight @ h + bias``, per head; the forget gate is a sigmoid, the input
    gate exponential. Gradients are exact for every input and for the ``h``, ``c`` and ``n`` of ``state``; ``m`` is a
    scale and gets none.

    Args:
        gates: the input's share of the pre-activations in the order i, f, z, o, (B, S, 4, NH, DH).
        recurrent_weight: (4, NH, DH, DH), laid out [gate, head, out, in].
        bias: (4, NH, DH).
        state: where to continue; None is the empty memory.
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        backend: ``compiled`` (C, for CPU tensors of at most 32 bits, where the core was built), ``native`` (PyTorch),
            or ``auto``: the first of them that runs.

    Returns:
        ``h`` (B, S, NH, DH) in the dtype of ``gates``, and an ``sLSTMState`` in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a shape does not fit, the sequence is empty, or the backend is unknown.
        TypeError: ``resets`` is not boolean.

    Source: Beck et al. 2024 (arXiv 2405.04517), equations 8 to 18.

    >>> h, state = slstm(gates, recurrent_weight)
    >>> h_next, state = slstm(gates_next, recurrent_weight, state=state)
    """
    bias, state = check_slstm_arguments(gates, recurrent_weight, bias, state, resets)
    usable = BACKENDS if core.runs(gates, recurrent_weight) else {"native": slstm_recurrent}
    return resolve_backend(backend, usable)(gates, recurrent_weight, bias, state, resets)


def check_slstm_arguments(
    gates: Tensor, recurrent_weight: Tensor, bias: Tensor | None, state: sLSTMState | None, resets: Tensor | None
) -> tuple[Tensor, sLSTMState]:
    """Raise on arguments that do not fit each other; return the bias and the state to start from."""
    if gates.ndim != 5 or gates.shape[2] != 4:
        raise ValueError(f"gates must be (B, S, 4, NH, DH), got {tuple(gates.shape)}")
    B, S, _, NH, DH = gates.shape
    if S == 0:
        raise ValueError(f"the sequence must have at least one step, got gates of shape {tuple(gates.shape)}")
    check_shape("recurrent_weight", recurrent_weight, (4, NH, DH, DH), "(4, NH, DH, DH)")
    check_resets(resets, B, S)
    dtype = check_dtypes({"gates": gates, "recurrent_weight": recurrent_weight})
    if bias is None:
        bias = torch.zeros(4, NH, DH, device=gates.device, dtype=dtype)
    check_shape("bias", bias, (4, NH, DH), "(4, NH, DH)")
    if state is None:
        state = initial_slstm_state(B, NH, DH, device=gates.device, dtype=dtype)
    for name, leaf in zip(state._fields, state, strict=True):
        check_shape(f"state.{name}", leaf, (B, NH, DH), "(B, NH, DH)")
    return bias, state
