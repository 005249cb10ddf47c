"""The mLSTM over chunks as a PyTorch operator, with the exact backward pass by hand.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, NC chunks, L chunk size.
Chunkwise is parallel inside a chunk and recurrent between chunks; source: Beck et al. 2025 (TFLA, arXiv 2503.14376),
section 2. Resets as segments of a chunk, the denominator's gradient and the closing of the forget gate's gradient
within each chunk are derived in kernels/README.md.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ..registration import register_gradient, register_op, straight
from .constants import EPSILON
from .decays import find_decays, visible


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


def _segments(resets: Tensor, L: int) -> Tensor:
    """(B, S) resets to the number of the segment that each step of a chunk lies in, (NC, B, 1, L)."""
    return _to_chunks(resets[..., None], L, fill=False).cumsum(-1)


def _to_chunks(x: Tensor, L: int, *, fill: float = 0.0) -> Tensor:
    """(B, S, NH, ...) to contiguous (NC, B, NH, L, ...), the last chunk filled up."""
    missing = -x.shape[1] % L
    if missing:
        x = torch.cat([x, x.new_full((x.shape[0], missing, *x.shape[2:]), fill)], dim=1)
    return _copy(x.unflatten(1, (-1, L)).movedim((1, 3), (0, 2)))


def _from_chunks(x: Tensor, S: int) -> Tensor:
    """(NC, B, NH, L, ...) to contiguous (B, S, NH, ...)."""
    return _copy(x.movedim((0, 2), (1, 3))).flatten(1, 2)[:, :S].contiguous()


def _copy(x: Tensor) -> Tensor:
    """Contiguous, and never ``x`` itself: an operator's outputs share no memory with its inputs or each other."""
    return x.clone(memory_format=torch.contiguous_format)


def _run_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    logf: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    segment: Tensor | None,
    normalize: bool,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Outputs of all chunks (NC, B, NH, L, DV), the state after them, and what the backward pass needs."""
    decays = find_decays(i, logf, m, segment, q.shape[-1] ** -0.5)
    written_k = k * decays.written[..., None]
    c_states = _scan(c, written_k.mT @ v, decays.kept)  # (NC + 1, B, NH, DK, DV)
    n_states = _scan(n[..., None], written_k.sum(-2)[..., None], decays.kept)  # (NC + 1, B, NH, DK, 1)

    scores = (q @ k.mT).mul_(decays.within)  # (NC, B, NH, L, L)
    carried_q = q * decays.carried[..., None]
    numerator = (scores @ v).add_(carried_q @ c_states[:-1])
    if normalize:
        normaliser = scores.sum(-1).add_((carried_q @ n_states[:-1]).squeeze(-1))
        denominator = torch.maximum(normaliser.abs(), decays.floor).add_(EPSILON)
    else:
        denominator = decays.floor
    h = numerator.div_(denominator[..., None])

    # Clones, because views would keep the states of all chunks alive.
    last = c_states[-1].clone(), n_states[-1, ..., 0].clone(), decays.m_last
    if not record:
        return h, *last, ()
    # Of the denominator, over it.
    slope = normaliser.sign() * (normaliser.abs() > decays.floor) / denominator if normalize else torch.zeros_like(i)
    rows = torch.stack((decays.carried, decays.written, slope, denominator))  # (4, NC, B, NH, L)
    return h, *last, (q, k, v, scores, decays.within, rows, decays.kept, c_states, n_states, h)


_Outputs = tuple[  # h, c, n and m, then the tape
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]
_TAPE_SIZE = 10


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    logf: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    resets: Tensor | None,
    chunk_size: int,
    normalize: bool,
    record: bool,
) -> _Outputs:
    S, L = q.shape[1], chunk_size
    q, k, v = (_to_chunks(x, L) for x in (q, k, v))  # (NC, B, NH, L, D)
    i = _to_chunks(i, L, fill=-torch.inf)  # (NC, B, NH, L): a filled-up step adds nothing ...
    logf = _to_chunks(logf, L)  # ... and forgets nothing
    segment = None if resets is None else _segments(resets, L)
    if resets is not None:  # here, because a weight of zero would not hide a state that holds NaN
        forgets = resets[:, :1]  # (B, 1)
        c, n = c.masked_fill(forgets[..., None, None], 0.0), n.masked_fill(forgets[..., None], 0.0)
        m = m.masked_fill(forgets, -torch.inf)
    h, *last, tape = _run_chunks(q, k, v, i, logf, c, n, m, segment, normalize, record)
    h = _from_chunks(h, S)  # after what is not recorded was freed: that memory is used again
    return cast(_Outputs, (h, *last, *(tape or (q.new_empty(0) for _ in range(_TAPE_SIZE)))))


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    logf: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    resets: Tensor | None,
    chunk_size: int,
    normalize: bool,
    record: bool,
) -> _Outputs:
    B, S, NH, DK = q.shape
    L, DV = chunk_size, v.shape[-1]
    NC = (S + L - 1) // L
    widths = ((DK,), (DK,), (DV,), (L,), (L,))  # q, k, v, scores and within
    shapes = [(NC, B, NH, L, *width) for width in widths]
    shapes += [(4, NC, B, NH, L), (NC, B, NH, 1, 1), (NC + 1, B, NH, DK, DV), (NC + 1, B, NH, DK, 1), shapes[2]]
    last = (x.new_empty(x.shape) for x in (c, n, m))
    return cast(_Outputs, (v.new_empty(v.shape), *last, *(q.new_empty(shape if record else 0) for shape in shapes)))


_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of q, k, v, i, log f, c, n


def _run_chunks_backward(
    dh: Tensor,
    dc: Tensor,
    dn: Tensor,
    resets: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scores: Tensor,
    within: Tensor,
    rows: Tensor,
    kept: Tensor,
    c_states: Tensor,
    n_states: Tensor,
    h: Tensor,
) -> _Gradients:
    """The gradients, with those of the sequences still in chunks (NC, B, NH, L, ...)."""
    L = q.shape[-2]
    carried, written, slope, denominator = rows.unbind(0)
    dh = _to_chunks(dh, L)
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
    seen = visible(None if resets is None else _segments(resets, L), crossing).to(q.dtype)
    dlogf = (crossing[..., None, :] @ seen).squeeze(-2)
    leaving = (c_states[1:] * dc_after).sum((-2, -1)) + (n_states[1:] * dn_after).sum((-2, -1))
    dlogf.addcmul_(leaving[..., None], seen[..., -1, :])
    return dq, dk, dv, di, dlogf, dc_states[0].clone(), dn_states[0].squeeze(-1).clone()


def _backward(
    dh: Tensor,
    dc: Tensor,
    dn: Tensor,
    resets: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scores: Tensor,
    within: Tensor,
    rows: Tensor,
    kept: Tensor,
    c_states: Tensor,
    n_states: Tensor,
    h: Tensor,
) -> _Gradients:
    tape = (q, k, v, scores, within, rows, kept, c_states, n_states, h)
    *dsequences, dc0, dn0 = _run_chunks_backward(dh, dc, dn, resets, *tape)
    dq, dk, dv, di, dlogf = (_from_chunks(dx, dh.shape[1]) for dx in dsequences)
    return dq, dk, dv, di, dlogf, dc0, dn0


def _backward_fake(
    dh: Tensor,
    dc: Tensor,
    dn: Tensor,
    resets: Tensor | None,
    q: Tensor,
    *tape: Tensor,
) -> _Gradients:
    B, S, NH, DV = dh.shape
    DK = q.shape[-1]
    shapes = ((B, S, NH, DK), (B, S, NH, DK), (B, S, NH, DV), (B, S, NH), (B, S, NH), (B, NH, DK, DV), (B, NH, DK))
    dq, dk, dv, di, dlogf, dc0, dn0 = (dh.new_empty(shape) for shape in shapes)
    return dq, dk, dv, di, dlogf, dc0, dn0


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    resets = inputs[8]
    h, c, n, m, *tape = output
    ctx.mark_non_differentiable(m, *tape)
    ctx.set_materialize_grads(False)  # the tape would get zeros as large as itself
    ctx.save_for_backward(resets, *tape)
    ctx.shapes = h.shape, c.shape, n.shape


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    resets, *tape = ctx.saved_tensors
    given = zip(gradients, ctx.shapes, strict=False)  # of h, c, n; there is none of m
    dh, dc, dn = (tape[0].new_zeros(shape) if dx is None else dx for dx, shape in given)
    return *_run_backward(dh, dc, dn, resets, *tape), None, None, None, None, None


mlstm_chunkwise = register_gradient(
    register_op("mlstm_chunkwise", _forward, _forward_fake), _setup_context, _differentiate, num_results=4
)
_run_backward = straight(register_op("mlstm_chunkwise_backward", _backward, _backward_fake))
