"""mLSTM in PyTorch: chunkwise with the exact backward pass by hand, and the single step.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, NC chunks, L chunk size.
Chunkwise is parallel inside a chunk and recurrent between chunks; source: Beck et al. 2025 (TFLA, arXiv 2503.14376),
section 2. Resets as segments of a chunk, the denominator's gradient and the closing of the forget gate's gradient
within each chunk are derived in kernels/README.md.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ...state import mLSTMState
from ..checks import gate_dtype
from .constants import EPSILON


def mlstm_native(
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
    if q.shape[1] == 1 and chunk_size is None:
        return _step(q, k, v, i, f, state, resets)
    S, L = q.shape[1], min(chunk_size or default_chunk_size(q.shape[1], q.shape[3]), q.shape[1])
    dtype = gate_dtype(q, k, v, i, f)
    q, k, vc = (_to_chunks(x.to(dtype), L) for x in (q, k, v))  # (NC, B, NH, L, D)
    i = _to_chunks(i.to(dtype), L, fill=-torch.inf)  # (NC, B, NH, L): a padded step adds nothing ...
    logf = _to_chunks(F.logsigmoid(f.to(dtype)), L)  # ... and forgets nothing
    segment = None if resets is None else _to_chunks(resets[..., None], L, fill=False).cumsum(-1)  # (NC, B, 1, L)
    c, n, m = (x.to(dtype) for x in state)
    h, *last = _Chunkwise.apply(q, k, vc, i, logf, c, n, m.detach(), segment, torch.is_grad_enabled())
    return h.movedim((0, 2), (1, 3)).flatten(1, 2)[:, :S].to(v.dtype), mLSTMState(*last)


def default_chunk_size(sequence_length: int, qk_head_dim: int) -> int:
    """The fastest on CPUs: small chunks waste least on the masked half, large heads want fewer states."""
    if qk_head_dim >= 64:
        return 64
    return 16 if sequence_length <= 128 else 32


def _to_chunks(x: Tensor, L: int, *, fill: float = 0.0) -> Tensor:
    """(B, S, NH, ...) to contiguous (NC, B, NH, L, ...), the last chunk filled up."""
    missing = -x.shape[1] % L
    if missing:
        x = torch.cat([x, x.new_full((x.shape[0], missing, *x.shape[2:]), fill)], dim=1)
    return x.unflatten(1, (-1, L)).movedim((1, 3), (0, 2)).contiguous()


def _step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: mLSTMState, resets: Tensor | None
) -> tuple[Tensor, mLSTMState]:
    """One step in the recurrent form, a quarter of the time of a chunk of one; autograd differentiates it."""
    dtype = gate_dtype(q, k, v, i, f)
    q, k, v_, i, f = (x[:, 0].to(dtype) for x in (q, k, v, i, f))
    c, n, m = (x.to(dtype) for x in state)
    if resets is not None:
        c, n = c.masked_fill(resets[..., None, None], 0.0), n.masked_fill(resets[..., None], 0.0)
        m = m.masked_fill(resets, -torch.inf)
    log_kept = F.logsigmoid(f) + m.detach()
    m = torch.maximum(log_kept, i).detach()  # (B, NH)
    kept, written_k = torch.exp(log_kept - m)[..., None], torch.exp(i - m)[..., None] * k
    c = torch.addcmul(kept[..., None] * c, written_k[..., :, None], v_[..., None, :])  # (B, NH, DK, DV)
    n = torch.addcmul(written_k, kept, n)  # (B, NH, DK)
    q = q * q.shape[-1] ** -0.5
    denominator = torch.maximum((q * n).sum(-1).abs(), torch.exp(-m)) + EPSILON
    h = (q[..., None, :] @ c).squeeze(-2) / denominator[..., None]
    return h[:, None].to(v.dtype), mLSTMState(c, n, m)


class _Decays(NamedTuple):
    """How far each step reaches, from the gates alone; all weights are relative to exp(m) of where they arrive."""

    within: Tensor  # (NC, B, NH, L, L): from step s of a chunk to step t of it, with the scale of q
    carried: Tensor  # (NC, B, NH, L): from the state before the chunk to step t, with the scale of q
    written: Tensor  # (NC, B, NH, L): from step s to the state after the chunk
    kept: Tensor  # (NC, B, NH, 1, 1): from the state before the chunk to the state after it
    floor: Tensor  # (NC, B, NH, L): exp(-m_t), the paper's 1
    m_last: Tensor  # (B, NH)


def _decays(i: Tensor, logf: Tensor, m: Tensor, segment: Tensor | None, scale: float) -> _Decays:
    # float64, because the sum reaches |f| L while its differences must stay exact to float32.
    b = logf.double().cumsum(-1)
    log_within = (b[..., :, None] - b[..., None, :]).to(i.dtype).add_(i[..., None, :])
    log_within.masked_fill_(~_visible(segment, i), -torch.inf)
    log_written = (b[..., -1:] - b).to(i.dtype).add_(i)
    log_carried, log_kept = b.to(i.dtype), b[..., -1].to(i.dtype)
    if segment is not None:
        log_written.masked_fill_(segment != segment[..., -1:], -torch.inf)
        log_carried = log_carried.masked_fill(segment > 0, -torch.inf)
        log_kept = log_kept.masked_fill(segment[..., -1] > 0, -torch.inf)

    stabilisers = [m]  # of the states between chunks
    for kept, written in zip(log_kept, log_written.amax(-1), strict=True):
        stabilisers.append(torch.maximum(kept + stabilisers[-1], written))
    m_chunks = torch.stack(stabilisers)  # (NC + 1, B, NH)
    m_before, m_after = m_chunks[:-1], m_chunks[1:]

    log_carried = log_carried + m_before[..., None]
    m_steps = torch.maximum(log_within.amax(-1), log_carried)  # (NC, B, NH, L): the recurrent form's m_t
    return _Decays(
        within=log_within.sub_(m_steps[..., None]).exp_().mul_(scale),
        carried=log_carried.sub_(m_steps).exp_().mul_(scale),
        written=log_written.sub_(m_after[..., None]).exp_(),
        kept=torch.exp(log_kept + m_before - m_after)[..., None, None],
        floor=torch.exp(-m_steps),
        m_last=stabilisers[-1].clone(),
    )


def _visible(segment: Tensor | None, like: Tensor) -> Tensor:
    """Whether step t reads step s of its chunk: s <= t, and no reset between; (..., t, s)."""
    L = like.shape[-1]
    causal = torch.ones(L, L, dtype=torch.bool, device=like.device).tril()
    return causal if segment is None else causal & (segment[..., :, None] == segment[..., None, :])


class _Chunkwise(torch.autograd.Function):
    """Chunks of q, k, v, i, log f and a state to h (NC, B, NH, L, DV) and the last c, n, m."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        logf: Tensor,
        c: Tensor,
        n: Tensor,
        m: Tensor,
        segment: Tensor | None,
        record: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        decays = _decays(i, logf, m, segment, q.shape[-1] ** -0.5)
        written_k = k * decays.written[..., None]
        c_states = _scan(c, written_k.mT @ v, decays.kept)  # (NC + 1, B, NH, DK, DV)
        n_states = _scan(n[..., None], written_k.sum(-2)[..., None], decays.kept)  # (NC + 1, B, NH, DK, 1)

        scores = (q @ k.mT).mul_(decays.within)  # (NC, B, NH, L, L)
        carried_q = q * decays.carried[..., None]
        numerator = (scores @ v).add_(carried_q @ c_states[:-1])
        normaliser = scores.sum(-1).add_((carried_q @ n_states[:-1]).squeeze(-1))
        denominator = torch.maximum(normaliser.abs(), decays.floor).add_(EPSILON)
        h = numerator.div_(denominator[..., None])
        if record and any(ctx.needs_input_grad):
            slope = normaliser.sign() * (normaliser.abs() > decays.floor) / denominator  # of the denominator, over it
            ctx.save_for_backward(q, k, v, scores, *decays[:4], c_states, n_states, h, slope, denominator)
            ctx.segment = segment
        ctx.mark_non_differentiable(decays.m_last)
        # Clones, because views would keep the states of all chunks alive.
        return h, c_states[-1].clone(), n_states[-1, ..., 0].clone(), decays.m_last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, dc: Tensor, dn: Tensor, _dm: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, scores, within, carried, written, kept, c_states, n_states, h, slope, denominator = ctx.saved_tensors
        # With a column of ones beside v and n beside c, the denominator is one more column of the numerator.
        dnumerator = dh / denominator[..., None]
        dnormaliser = (dh * h).sum(-1, keepdim=True).mul_(slope[..., None]).neg_()  # (NC, B, NH, L, 1)

        carried_q = q * carried[..., None]
        dc_states = _scan_backward(dc, carried_q.mT @ dnumerator, kept)
        dn_states = _scan_backward(dn[..., None], carried_q.mT @ dnormaliser, kept)
        dc_after, dn_after = dc_states[1:], dn_states[1:]

        dscores = (dnumerator @ v.mT).add_(dnormaliser).mul_(within)
        dq_carried = (dnumerator @ c_states[:-1].mT).addcmul_(dnormaliser, n_states[:-1].mT)
        dq = (dscores @ k).addcmul_(dq_carried, carried[..., None])
        dk_written = (v @ dc_after.mT).add_(dn_after.mT)
        dk = (dscores.mT @ q).addcmul_(dk_written, written[..., None])
        dv = (scores.mT @ dnumerator).add_((k * written[..., None]) @ dc_after)

        # log f of step r weighs all that crosses r: what is read at t >= r less what was written at s >= r, plus what
        # leaves with the state. Closed within the chunk and the segment, so that cancellation does not grow with S.
        di = (k * dk).sum(-1)
        crossing = (q * dq).sum(-1).sub_(di)
        visible = _visible(ctx.segment, crossing).to(q.dtype)
        dlogf = (crossing[..., None, :] @ visible).squeeze(-2)
        leaving = (c_states[1:] * dc_after).sum((-2, -1)) + (n_states[1:] * dn_after).sum((-2, -1))
        dlogf.addcmul_(leaving[..., None], visible[..., -1, :])
        return dq, dk, dv, di, dlogf, dc_states[0], dn_states[0].squeeze(-1), None, None, None


def _scan(state: Tensor, written: Tensor, kept: Tensor) -> Tensor:
    """The states between chunks, (NC + 1, B, NH, ...): each keeps a share of the last and adds what is written."""
    states = written.new_empty(len(written) + 1, *written.shape[1:])
    states[0] = state
    for chunk in range(len(written)):
        torch.addcmul(written[chunk], kept[chunk], states[chunk], out=states[chunk + 1])
    return states


def _scan_backward(dlast: Tensor, dread: Tensor, kept: Tensor) -> Tensor:
    """The gradients of the states between chunks, (NC + 1, B, NH, ...): of the last one, and of what reads them."""
    dstates = dread.new_empty(len(dread) + 1, *dread.shape[1:])
    dstates[-1] = dlast
    for chunk in reversed(range(len(dread))):
        torch.addcmul(dread[chunk], kept[chunk], dstates[chunk + 1], out=dstates[chunk])
    return dstates
