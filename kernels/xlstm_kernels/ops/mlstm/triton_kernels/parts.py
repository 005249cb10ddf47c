"""What the mLSTM's Triton kernels of the way back leave for each other, and how it is read.

What is a sum over tiles of values or keys is left behind as one part a tile. Letters: shared.py.
"""

import triton
import triton.language as tl

from .shared import left_of

# What kernels pass each other is one flat float32 array: y, (value tiles, B, NH, S), and the gradients of n after each
# chunk, (value tiles, B, NH, NC, DK). Behind them, for kernels that take whole chunks, <C, dC> + <n, dn> of the state
# before each, (value tiles, B, NH, NC); of roles, q . dq, its share from that state, and k . dk, (key roles, B, NH, S)
# each, and <C, dC> + <n, dn> of what the state hands on, (key tiles, B, NH, NC).


@triton.jit
def y_part(PARTS, heads, at, S, tile):
    return PARTS + (tile * heads.to(tl.int64) + at) * S


@triton.jit
def dn_part(PARTS, heads, at, S, NC, tile, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    return PARTS + VALUE_TILES * heads.to(tl.int64) * S + (tile * heads.to(tl.int64) + at) * NC * DK


@triton.jit
def _behind_dn(PARTS, heads, S, NC, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    return PARTS + VALUE_TILES * heads.to(tl.int64) * (S + NC * DK)


@triton.jit
def entering_part(PARTS, heads, at, S, NC, tile, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    return _behind_dn(PARTS, heads, S, NC, DK, VALUE_TILES) + (tile * heads.to(tl.int64) + at) * NC


@triton.jit
def role_part(
    PARTS, heads, at, S, NC, number, tile, DK: tl.constexpr, VALUE_TILES: tl.constexpr, KEY_TILES: tl.constexpr
):
    behind = _behind_dn(PARTS, heads, S, NC, DK, VALUE_TILES)
    return behind + ((number * KEY_TILES + tile) * heads.to(tl.int64) + at) * S


@triton.jit
def leaving_part(PARTS, heads, at, S, NC, tile, DK: tl.constexpr, VALUE_TILES: tl.constexpr, KEY_TILES: tl.constexpr):
    behind = _behind_dn(PARTS, heads, S, NC, DK, VALUE_TILES)
    return behind + 3 * KEY_TILES * heads.to(tl.int64) * S + (tile * heads.to(tl.int64) + at) * NC


@triton.jit
def load_y(PARTS, heads, at, S, first, steps, VALUE_TILES: tl.constexpr):
    inside = steps < left_of(S, first)
    y = tl.load(y_part(PARTS, heads, at, S, 0) + first + steps, mask=inside, other=0.0)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            y += tl.load(y_part(PARTS, heads, at, S, tile) + first + steps, mask=inside, other=0.0)
    return y


@triton.jit
def load_dn(PARTS, heads, at, S, NC, chunk, keys, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    """The gradient of n after a chunk."""
    of_keys = chunk * DK + keys
    dn = tl.load(dn_part(PARTS, heads, at, S, NC, 0, DK, VALUE_TILES) + of_keys, mask=keys < DK, other=0.0)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            part = dn_part(PARTS, heads, at, S, NC, tile, DK, VALUE_TILES)
            dn += tl.load(part + of_keys, mask=keys < DK, other=0.0)
    return dn


@triton.jit
def load_entering(PARTS, heads, at, S, NC, chunk, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    entering = tl.load(entering_part(PARTS, heads, at, S, NC, 0, DK, VALUE_TILES) + chunk)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            entering += tl.load(entering_part(PARTS, heads, at, S, NC, tile, DK, VALUE_TILES) + chunk)
    return entering


@triton.jit
def load_segment(SEGMENT, steps, inside, outside, WITH_RESETS: tl.constexpr):
    segment = tl.zeros(steps.shape, tl.int32)
    if WITH_RESETS:
        segment = tl.load(SEGMENT + steps, mask=inside, other=outside).to(tl.int32)
    return segment
