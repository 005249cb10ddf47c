"""mLSTM chunkwise in PyTorch: parallel inside a chunk, recurrent between chunks, resets as segments.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, NC chunks, L chunk size.
Source: the chunkwise form of Beck et al. 2025 (TFLA, arXiv 2503.14376), section 2; the segments are ours.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...state import mLSTMState
from ..checks import gate_dtype
from .constants import EPSILON


def mlstm_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState,
    resets: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, mLSTMState]:
    """The contract of ``mlstm``."""
    S, L = q.shape[1], min(chunk_size or default_chunk_size(q.shape[1], q.shape[3]), q.shape[1])
    dtype = gate_dtype(q, k, v, i, f)
    qc, kc, vc = (_to_chunks(x.to(dtype), L) for x in (q, k, v))  # (B, NH, NC, L, D)
    qc = qc * q.shape[-1] ** -0.5
    ic = _to_chunks(i.to(dtype), L, fill=-torch.inf)  # (B, NH, NC, L): a padded step adds nothing ...
    logf = _to_chunks(F.logsigmoid(f.to(dtype)), L)  # ... and forgets nothing
    segment = None if resets is None else _to_chunks(resets[..., None], L, fill=False).cumsum(-1)  # (B, 1, NC, L)
    # float64, because the sum reaches |f| L while differences of it must stay exact to float32.
    b = logf.double().cumsum(-1)

    before, last = _states_between_chunks(kc, vc, ic, b, segment, state)
    h = _outputs(qc, kc, vc, ic, b, segment, before)
    return h.movedim(1, 3).flatten(1, 2)[:, :S].to(v.dtype), last


def default_chunk_size(sequence_length: int, qk_head_dim: int) -> int:
    """The fastest on CPUs: small chunks waste least on the masked half, large heads want fewer states."""
    if qk_head_dim >= 64:
        return 64
    return 16 if sequence_length <= 128 else 32


def _to_chunks(x: Tensor, L: int, *, fill: float = 0.0) -> Tensor:
    """(B, S, NH, ...) to (B, NH, NC, L, ...), the last chunk filled up."""
    missing = -x.shape[1] % L
    if missing:
        x = torch.cat([x, x.new_full((x.shape[0], missing, *x.shape[2:]), fill)], dim=1)
    return x.unflatten(1, (-1, L)).movedim(3, 1)


def _states_between_chunks(
    k: Tensor, v: Tensor, i: Tensor, b: Tensor, segment: Tensor | None, state: mLSTMState
) -> tuple[mLSTMState, mLSTMState]:
    """The states before each chunk, stacked as (B, NH, NC, ...), and the state after the last one."""
    log_write = (b[..., -1:] - b).to(i.dtype) + i  # (B, NH, NC, L), weight of step s at the chunk's end
    log_keep = b[..., -1].to(i.dtype)  # (B, NH, NC), weight of the state before
    if segment is not None:
        log_write = log_write.masked_fill(segment != segment[..., -1:], -torch.inf)
        log_keep = log_keep.masked_fill(segment[..., -1] > 0, -torch.inf)
    m_write = log_write.amax(-1).detach()  # finite: a chunk's last real step is always in its last segment
    weighted_k = k * torch.exp(log_write - m_write[..., None])[..., None]
    c_write = weighted_k.transpose(-1, -2) @ v  # (B, NH, NC, DK, DV)
    n_write = weighted_k.sum(-2)  # (B, NH, NC, DK)

    c, n, m = state.c, state.n, state.m.detach()
    before = []
    for log_keep_, m_write_, c_write_, n_write_ in zip(
        log_keep.unbind(2), m_write.unbind(2), c_write.unbind(2), n_write.unbind(2), strict=True
    ):
        before.append((c, n, m))
        m_new = torch.maximum(log_keep_.detach() + m, m_write_)
        keep = torch.exp(log_keep_ + m - m_new)[..., None]
        write = torch.exp(m_write_ - m_new)[..., None]
        c = keep[..., None] * c + write[..., None] * c_write_
        n = keep * n + write * n_write_
        m = m_new
    c_before, n_before, m_before = (torch.stack(parts, dim=2) for parts in zip(*before, strict=True))
    return mLSTMState(c_before, n_before, m_before), mLSTMState(c, n, m)


def _outputs(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, b: Tensor, segment: Tensor | None, before: mLSTMState
) -> Tensor:
    """h (B, NH, NC, L, DV) from the steps of the same chunk and the state before it."""
    L = q.shape[-2]
    visible = torch.ones(L, L, dtype=torch.bool, device=q.device).tril()  # (t, s): s <= t ...
    log_carry = b.to(i.dtype)  # (B, NH, NC, L), weight of the state before the chunk at step t
    if segment is not None:
        visible = visible & (segment[..., :, None] == segment[..., None, :])  # ... in the same segment
        log_carry = log_carry.masked_fill(segment > 0, -torch.inf)
    log_d = (b[..., :, None] - b[..., None, :]).to(i.dtype) + i[..., None, :]  # (B, NH, NC, L, L)
    log_d = log_d.masked_fill(~visible, -torch.inf)
    log_carry = log_carry + before.m[..., None]
    m = torch.maximum(log_d.amax(-1), log_carry).detach()  # (B, NH, NC, L), the recurrent form's m_t

    weights = (q @ k.transpose(-1, -2)) * torch.exp(log_d - m[..., None])
    carried_q = q * torch.exp(log_carry - m)[..., None]
    numerator = weights @ v + carried_q @ before.c
    normaliser = weights.sum(-1) + (carried_q @ before.n[..., None]).squeeze(-1)
    denominator = torch.maximum(normaliser.abs(), torch.exp(-m)) + EPSILON
    return numerator / denominator[..., None]
