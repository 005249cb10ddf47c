"""mLSTM in PyTorch: the single step, and the choice between it and the chunkwise operator.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, L chunk size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...state import initial_mlstm_state, mLSTMState
from ..registration import must_record, without_autocast
from .chunkwise import mlstm_chunkwise
from .constants import EPSILON
from .decays import finite


def default_chunk_size(sequence_length: int, qk_head_dim: int) -> int:
    """The fastest on CPUs: small chunks waste least on the masked half, large heads want fewer states."""
    largest = 64 if qk_head_dim >= 64 else 32
    if not isinstance(sequence_length, int):  # traced for all lengths, which a comparison would cut in two
        return largest
    return min(16 if sequence_length <= 128 and qk_head_dim < 64 else largest, sequence_length)


@without_autocast
def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    logf: Tensor,
    state: mLSTMState,
    resets: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, mLSTMState]:
    """One step in the recurrent form, a quarter of the time of a chunk of one; autograd differentiates it."""
    c, n, m = state
    q, k, v_, i, logf = (x[:, 0].to(m.dtype) for x in (q, k, v, i, logf))
    if resets is not None:
        c, n = c.masked_fill(resets[..., None, None], 0.0), n.masked_fill(resets[..., None], 0.0)
        m = m.masked_fill(resets, -torch.inf)
    log_kept = logf + m.detach()
    m = torch.maximum(log_kept, i).detach()  # (B, NH)
    scale = finite(m)
    kept, written_k = torch.exp(log_kept - scale)[..., None], torch.exp(i - scale)[..., None] * k
    c = torch.addcmul(kept[..., None] * c, written_k[..., :, None], v_[..., None, :])  # (B, NH, DK, DV)
    n = torch.addcmul(written_k, kept, n)  # (B, NH, DK)
    q = q * q.shape[-1] ** -0.5
    denominator = torch.exp(-scale)
    if normalize:
        denominator = torch.maximum((q * n).sum(-1).abs(), denominator) + EPSILON
    h = (q[..., None, :] @ c).squeeze(-2) / denominator[..., None]
    return h[:, None].to(v.dtype), mLSTMState(c, n, m)


def mlstm_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: mLSTMState | None,
    resets: Tensor | None,
    chunk_size: int | None,
    normalize: bool,
) -> tuple[Tensor, mLSTMState]:
    """The contract of ``mlstm``, but that i is the logarithm of the input gate, whichever that is."""
    B, S, NH, DK = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    state = state or initial_mlstm_state(B, NH, DK, v.shape[3], device=q.device, dtype=dtype)
    i, logf = i.to(dtype), F.logsigmoid(f.to(dtype))
    if S == 1 and chunk_size is None:
        return _step(q, k, v, i, logf, state, resets, normalize)
    L = default_chunk_size(S, DK) if chunk_size is None else min(chunk_size, S)
    c, n, m = state
    inputs = (q.to(m.dtype), k.to(m.dtype), v.to(m.dtype), i, logf, c, n, m.detach())
    h, c, n, m = mlstm_chunkwise(*inputs, resets, L, normalize, must_record(*inputs))
    return h.to(v.dtype), mLSTMState(c, n, m)
