"""Of the steps of a chunk in each other. Letters: ../shared.py."""

import triton
import triton.language as tl

from ..shared import power


@triton.jit
def chunk_weights(a, u, s, t, segment_s, segment_t, WITH_RESETS: tl.constexpr):
    """Of steps s of a chunk (rows) in what its steps t (columns) read."""
    visible = s[:, None] <= t[None, :]
    if WITH_RESETS:
        visible = visible & (segment_s[:, None] == segment_t[None, :])
    return tl.where(visible, power(a[:, None] - u[None, :]), 0.0)
