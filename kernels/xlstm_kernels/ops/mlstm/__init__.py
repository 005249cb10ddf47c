"""mLSTM, the matrix memory: its entry function, which checks the arguments and picks the implementation.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import core
from ...checks import check_choice, check_integer, check_positive
from ...state import initial_mlstm_state, mLSTMState
from .. import triton_backend
from ..checks import (
    check_devices,
    check_dtypes,
    check_resets,
    check_shape,
    check_state,
    check_tensor,
    resolve_backend,
)
from ..padding import check_lengths, from_own_steps, keep_where_empty, to_own_steps, valid_steps
from .compiled import mlstm_compiled
from .native import mlstm_native


def _mlstm_triton(*arguments: Any) -> tuple[Tensor, mLSTMState]:
    from .triton_launch import mlstm_triton  # here, because all else must run without Triton

    return mlstm_triton(*arguments)


BACKENDS: Mapping[str, Callable[..., tuple[Tensor, mLSTMState]]] = {
    "native": mlstm_native,
    "compiled": mlstm_compiled,
    "triton": _mlstm_triton,
}


def _usable(q: Tensor) -> list[str]:
    """The backends for queries, whose device and whether they are float64 all operands share; auto takes the last."""
    names = ["native"]
    if core.runs(q):
        names.append("compiled")
    if triton_backend.runs(q):
        names.insert(len(names) if q.is_cuda else 0, "triton")  # on the CPU it is interpreted: by name alone
    return names


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState | None = None,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    padding: str = "right",
    input_gate: str = "exponential",
    normalize: bool = True,
    soft_cap: float | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, mLSTMState]:
    """Run the mLSTM over a sequence of any length (one step included) and return outputs and the state after it.

    Cost is linear in S. Gradients are exact for every input and for the ``c`` and ``n`` of ``state``, the
    denominator's share included; ``m`` is a scale and gets none.

    Relatives are special cases. Retention with decay ``gamma`` (RetNet): ``i = 0``, ``f = logit(gamma)`` and
    ``normalize=False``. Linear attention with a scalar gate: any ``f``, ``i = 0`` or ``input_gate="sigmoid"``, and
    ``normalize=False``. Ungated linear attention: ``f`` large as well.

    Args:
        q, k: queries and keys, (B, S, NH, DK); queries are scaled by DK^-1/2 here.
        v: values, (B, S, NH, DV).
        i, f: pre-activations of the input gate and of the sigmoid forget gate, (B, S, NH).
        state: where to continue; None is the empty memory.
        resets: bool (B, S); where true, the row forgets everything before it reads that step.
        lengths: integers (B,), the steps of each row that are its own, 0 to S; the others leave its state as it is,
            give ``h = 0``, get no gradient and may hold anything, NaN included. None: all steps.
        padding: the side on which the other steps lie, ``right`` or ``left``.
        input_gate: ``exponential`` or ``sigmoid``.
        normalize: whether ``h`` is divided by ``max(|n q|, 1)``; without, it is the memory's plain answer, which an
            exponential gate can take beyond float32.
        soft_cap: ``c`` bounds both gates' pre-activations smoothly, as ``c tanh(x / c)``; None leaves them.
        chunk_size: steps that are worked in parallel; changes speed and memory, not the result.
        backend: ``triton`` (for CUDA tensors of at most 32 bits, where Triton imports), ``compiled`` (C, for CPU
            tensors of at most 32 bits, where the core was built), ``native`` (PyTorch), or ``auto``: the first of them
            that runs. On CUDA devices products of float32 are as exact as ``torch.set_float32_matmul_precision`` says:
            ``highest`` is float32 itself, ``high`` TF32, ``medium`` bfloat16; those of bfloat16 are bfloat16.

    Returns:
        ``h`` (B, S, NH, DV) in the dtype of ``v``, and an ``mLSTMState`` in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes or devices do not fit, the sequence is empty, a length is not in 0 ... S, or an option or
            the backend is unknown or out of range.
        TypeError: ``resets`` is not boolean, ``lengths`` not integer, or dtypes or the kind of state do not fit.

    Source: Beck et al. 2024 (arXiv 2405.04517), equations 19 to 27; the sigmoid input gate and the soft cap:
    Beck et al. 2025 (arXiv 2503.14376 and 2503.13427).

    >>> h, state = mlstm(q, k, v, i, f)
    >>> h_next, state = mlstm(q_next, k_next, v_next, i_next, f_next, state)
    """
    dtype = check_mlstm_arguments(q, k, v, i, f, state, resets, chunk_size)
    check_lengths(lengths, padding, *q.shape[:2])
    c = None if state is None else state.c
    check_devices({"q": q, "k": k, "v": v, "i": i, "f": f, "state.c": c, "resets": resets, "lengths": lengths})
    check_choice("input_gate", input_gate, ("exponential", "sigmoid"))
    if soft_cap is not None:
        check_positive("soft_cap", soft_cap)
    run = BACKENDS[resolve_backend(backend, _usable(q))]
    (q, k, v, i, f), resets = to_own_steps((q, k, v, i, f), resets, lengths, padding)
    if soft_cap is not None:
        i, f = (soft_cap * torch.tanh(x.to(dtype) / soft_cap) for x in (i, f))
    if input_gate == "sigmoid":
        i = F.logsigmoid(i.to(dtype))
    if lengths is None:
        return run(q, k, v, i, f, state, resets, chunk_size, normalize)
    if state is None:
        B, _, NH, DK = q.shape
        state = initial_mlstm_state(B, NH, DK, v.shape[3], device=q.device, dtype=dtype)
    outside = ~valid_steps(lengths, q.shape[1])[..., None]  # (B, S, 1), steps that write nothing and forget nothing
    i, f = i.masked_fill(outside, -torch.inf), f.masked_fill(outside, torch.inf)
    h, last = run(q, k, v, i, f, state, resets, chunk_size, normalize)
    return from_own_steps(h, lengths, padding), keep_where_empty(state, last, lengths)


def check_mlstm_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState | None,
    resets: Tensor | None,
    chunk_size: int | None,
) -> torch.dtype:
    """Raise on arguments that do not fit each other; return the dtype of the state."""
    for name, tensor in (("q", q), ("v", v)):
        check_tensor(name, tensor)
    if q.ndim != 4:
        raise ValueError(f"q must be (B, S, NH, DK), got {tuple(q.shape)}")
    if v.ndim != 4:
        raise ValueError(f"v must be (B, S, NH, DV), got {tuple(v.shape)}")
    B, S, NH, DK = q.shape
    DV = v.shape[-1]
    if S == 0:
        raise ValueError(f"the sequence must have at least one step, got q of shape {tuple(q.shape)}")
    if chunk_size is not None:
        check_integer("chunk_size", chunk_size, minimum=1)
    check_shape("k", k, (B, S, NH, DK), "(B, S, NH, DK)")
    check_shape("v", v, (B, S, NH, DV), "(B, S, NH, DV)")
    check_shape("i", i, (B, S, NH), "(B, S, NH)")
    check_shape("f", f, (B, S, NH), "(B, S, NH)")
    check_resets(resets, B, S)
    dtype = check_dtypes({"q": q, "k": k, "v": v, "i": i, "f": f})
    if state is not None:
        check_state(state, mLSTMState, ((B, NH, DK, DV), (B, NH, DK), (B, NH)), dtype)
    return dtype
