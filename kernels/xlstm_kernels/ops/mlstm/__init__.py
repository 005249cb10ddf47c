"""mLSTM, the matrix memory: its entry function, which checks the arguments and picks the implementation.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim.
"""

from torch import Tensor

from ...state import initial_mlstm_state, mLSTMState
from ..checks import check_resets, check_shape, gate_dtype, resolve_backend
from .native import mlstm_native

BACKENDS = {"native": mlstm_native}


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState | None = None,
    *,
    resets: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, mLSTMState]:
    """Run the mLSTM over a sequence of any length (one step included) and return outputs and the state after it.

    Cost is linear in S. Gradients are exact for every input and for the ``c`` and ``n`` of ``state``, the
    denominator's share included; ``m`` is a scale and gets none.

    Args:
        q, k: queries and keys, (B, S, NH, DK); queries are scaled by DK^-1/2 here.
        v: values, (B, S, NH, DV).
        i, f: pre-activations of the exponential input gate and the sigmoid forget gate, (B, S, NH).
        state: where to continue; None is the empty memory.
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        chunk_size: steps that are worked in parallel; changes speed and memory, not the result.
        backend: ``auto`` or an implementation by name (``native``).

    Returns:
        ``h`` (B, S, NH, DV) in the dtype of ``v``, and an ``mLSTMState`` in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a shape does not fit, the sequence is empty, or the backend is unknown.
        TypeError: ``resets`` is not boolean.

    Source: Beck et al. 2024 (arXiv 2405.04517), equations 19 to 27.

    >>> h, state = mlstm(q, k, v, i, f)
    >>> h_next, state = mlstm(q_next, k_next, v_next, i_next, f_next, state)
    """
    state = check_mlstm_arguments(q, k, v, i, f, state, resets, chunk_size)
    return resolve_backend(backend, BACKENDS)(q, k, v, i, f, state, resets, chunk_size)


def check_mlstm_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState | None,
    resets: Tensor | None,
    chunk_size: int | None,
) -> mLSTMState:
    """Raise on arguments that do not fit each other; return the state to start from."""
    if q.ndim != 4:
        raise ValueError(f"q must be (B, S, NH, DK), got {tuple(q.shape)}")
    if v.ndim != 4:
        raise ValueError(f"v must be (B, S, NH, DV), got {tuple(v.shape)}")
    B, S, NH, DK = q.shape
    DV = v.shape[-1]
    if S == 0:
        raise ValueError(f"the sequence must have at least one step, got q of shape {tuple(q.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}")
    check_shape("k", k, (B, S, NH, DK), "(B, S, NH, DK)")
    check_shape("v", v, (B, S, NH, DV), "(B, S, NH, DV)")
    check_shape("i", i, (B, S, NH), "(B, S, NH)")
    check_shape("f", f, (B, S, NH), "(B, S, NH)")
    check_resets(resets, B, S)
    if state is None:
        return initial_mlstm_state(B, NH, DK, DV, device=q.device, dtype=gate_dtype(q, k, v, i, f))
    check_shape("state.c", state.c, (B, NH, DK, DV), "(B, NH, DK, DV)")
    check_shape("state.n", state.n, (B, NH, DK), "(B, NH, DK)")
    check_shape("state.m", state.m, (B, NH), "(B, NH)")
    return state
