"""Of the steps of a chunk in each other. Letters: ../shared.py."""

import triton
import triton.language as tl

from ..shared import power


@triton.jit
def chunk_weights(a, u, steps, ahead, segment_s, segment_t, WITH_RESETS: tl.constexpr):
    """Of step s (rows) in what step t (columns), of a tile ``ahead`` steps later, reads."""
    visible = steps[:, None] <= steps[None, :] + ahead
    if WITH_RESETS:
        visible = visible & (segment_s[:, None] == segment_t[None, :])
    return tl.where(visible, power(a[:, None] - u[None, :]), 0.0)
