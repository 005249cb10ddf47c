"""How far each step of an mLSTM's chunks reaches, from its gates alone.

Shapes: B batch, NH heads, NC chunks, L chunk size. Gates come as (NC, B, NH, L).
"""

from typing import NamedTuple

import torch
from torch import Tensor

FORGOTTEN = -1e5  # of log f: exp() of less is 0 as well, and would take from the sum all that is added to it later


class Decays(NamedTuple):
    """How far each step reaches, from the gates alone; all weights are relative to exp(m) of where they arrive."""

    within: Tensor  # (NC, B, NH, L, L): from step s of a chunk to step t of it, with the scale of q
    carried: Tensor  # (NC, B, NH, L): from the state before the chunk to step t, with the scale of q
    written: Tensor  # (NC, B, NH, L): from step s to the state after the chunk
    kept: Tensor  # (NC, B, NH, 1, 1): from the state before the chunk to the state after it
    floor: Tensor  # (NC, B, NH, L): exp(-m_t), the paper's 1
    m_last: Tensor  # (B, NH)


def finite(m: Tensor) -> Tensor:
    """Stabilisers to subtract: where nothing was ever written, m is -inf, and -inf less -inf would be NaN."""
    return m.clamp(min=torch.finfo(m.dtype).min)


def visible(segment: Tensor | None, like: Tensor) -> Tensor:
    """Whether step t reads step s of its chunk: s <= t, and no reset between; (..., t, s)."""
    L = like.shape[-1]
    causal = torch.ones(L, L, dtype=torch.bool, device=like.device).tril()
    return causal if segment is None else causal & (segment[..., :, None] == segment[..., None, :])


def find_decays(i: Tensor, logf: Tensor, m: Tensor, segment: Tensor | None, scale: float) -> Decays:
    """Of all chunks: their gates i and log f, the m (B, NH) before the first, segments, and the scale of q."""
    # float64, because the sum reaches |f| L while its differences must stay exact to float32.
    b = logf.double().clamp(min=FORGOTTEN).cumsum(-1)
    log_within = (b[..., :, None] - b[..., None, :]).to(i.dtype).add_(i[..., None, :])
    log_within.masked_fill_(~visible(segment, i), -torch.inf)
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

    m_after = finite(m_after)
    log_carried = log_carried + m_before[..., None]
    m_steps = finite(torch.maximum(log_within.amax(-1), log_carried))  # (NC, B, NH, L): the recurrent form's m_t
    return Decays(
        within=log_within.sub_(m_steps[..., None]).exp_().mul_(scale),
        carried=log_carried.sub_(m_steps).exp_().mul_(scale),
        written=log_written.sub_(m_after[..., None]).exp_(),
        kept=torch.exp(log_kept + m_before - m_after)[..., None, None],
        floor=torch.exp(-m_steps),
        m_last=stabilisers[-1].clone(),
    )
