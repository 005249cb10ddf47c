"""mLSTM in C: one call for a whole sequence forward, one for its exact backward.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim.
"""

import ctypes

LANES = 16  # as in csrc/core.c


class HeadSizes(ctypes.Structure):
    """``mlstm_head`` of csrc/types.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("DK", "DV", "DVL", "normalize")]


def whole(lanes: int) -> int:
    """Rounded up to whole vectors."""
    return -(-lanes // LANES) * LANES


def memory_floats(DK: int, DV: int) -> int:
    """The size of one head's memory, c with rows of whole vectors, n and m."""
    return DK * (whole(DV) + 1) + 1


def chunk_size(sequence_length: int, qk_head_dim: int) -> int:
    """The fastest measured, in steps; large heads want fewer states between chunks."""
    if sequence_length <= 16:
        return 16
    return 64 if qk_head_dim >= 64 and sequence_length > 32 else 32
