"""What the mLSTM's Triton kernels of the way back leave for each other, a flat record for each chunk as on the tape.

What is a sum over tiles of values or keys is left behind as one part a tile: by the walk over tiles of values y, (L,),
the gradient of n after the chunk, (DK,), and, for kernels that take whole chunks, <C, dC> + <n, dn> of the state before
it; by roles q . dq, its share from that state and k . dk, (L,) each, and <C, dC> + <n, dn> of what the state hands on.
Letters: shared.py.
"""

import triton
import triton.language as tl

from .tape import ALIGNMENT, load_of_keys

AT_Q_DQ, AT_FROM_STATE, AT_K_DK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
ROLE_NUMBERS = tl.constexpr(3)


@triton.jit
def value_part_size(L: tl.constexpr, DK: tl.constexpr):
    """On the host, ``value_part_size.fn``."""
    return (L + DK + 1 + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@triton.jit
def role_part_size(L: tl.constexpr):
    """On the host, ``role_part_size.fn``."""
    return (ROLE_NUMBERS * L + 1 + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@triton.jit
def value_part(PARTS, tile, chunk, chunks, L: tl.constexpr, DK: tl.constexpr):
    """Of a tile of values of one of all (B, NH, NC) ``chunks``: y, then the gradient of n, then what enters."""
    return PARTS + (tile * chunks + chunk) * value_part_size(L, DK)


@triton.jit
def role_part(PARTS, tile, chunk, chunks, L: tl.constexpr, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    """Of a tile of keys: numbers of steps, then what leaves."""
    behind = PARTS + VALUE_TILES * chunks * value_part_size(L, DK)
    return behind + (tile * chunks + chunk) * role_part_size(L)


@triton.jit
def load_y(PARTS, chunk, chunks, steps, L: tl.constexpr, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    y = tl.load(value_part(PARTS, 0, chunk, chunks, L, DK) + steps)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            y += tl.load(value_part(PARTS, tile, chunk, chunks, L, DK) + steps)
    return y


@triton.jit
def load_dn(PARTS, chunk, chunks, keys, L: tl.constexpr, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    """The gradient of n after a chunk."""
    dn = load_of_keys(value_part(PARTS, 0, chunk, chunks, L, DK) + L, keys, DK)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            dn += load_of_keys(value_part(PARTS, tile, chunk, chunks, L, DK) + L, keys, DK)
    return dn


@triton.jit
def load_entering(PARTS, chunk, chunks, L: tl.constexpr, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    entering = tl.load(value_part(PARTS, 0, chunk, chunks, L, DK) + L + DK)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            entering += tl.load(value_part(PARTS, tile, chunk, chunks, L, DK) + L + DK)
    return entering
