"""The mLSTM's Triton kernel that walks back over the states between chunks. Letters: shared.py.

y is the gradient of the normaliser times the denominator, -sign(l) (dh . h) where |l| is above the floor.
"""

import triton
import triton.language as tl

from .parts import dn_part, entering_part, y_part
from .shared import (
    CHUNK_NUMBERS,
    left_of,
    load_segments,
    load_tile,
    of_segment_0,
    power,
    state_tile,
    tape_of_chunks,
    tape_of_n,
    tape_of_steps,
)


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_backward_states(
    Q,
    RESETS,
    H,
    DH,
    DC_LAST,
    DN_LAST,
    TAPE,
    C_STATES,
    PARTS,
    DC_STATES,
    DC_FIRST,
    DN_FIRST,  # a part a tile of values, (value tiles, B, NH, DK)
    q_batch,
    q_step,
    q_head,
    S,
    NH,
    scale,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    L: tl.constexpr,
    FRESH: tl.constexpr,
    LAST: tl.constexpr,
    ENTERING: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program a (BK, BV) tile of the memory of a head of a row, backwards through all chunks.

    The gradients of n are linear in y: each tile of values has its part of both. ``LAST``: the loss reads the last
    state. ``ENTERING``: leave behind what of the loss comes through the state before each chunk, <C, dC> + <n, dn>.
    """
    log2_scale = tl.log2(scale)
    VALUE_TILES: tl.constexpr = (DV + BV - 1) // BV
    TILES: tl.constexpr = (DK + BK - 1) // BK * VALUE_TILES
    tile = tl.program_id(0) % TILES
    heads = tl.num_programs(0) // TILES
    at = (tl.program_id(0) // TILES).to(tl.int64)  # of (B, NH)
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    steps, value_tile = tl.arange(0, L), tile % VALUE_TILES
    keys, values = tile // VALUE_TILES * BK + tl.arange(0, BK), value_tile * BV + tl.arange(0, BV)
    of_state, in_state = state_tile(keys, values, DK, DV)
    Q += row * q_batch + head * q_head
    H += row * S * NH * DV + head * DV
    DH += row * S * NH * DV + head * DV
    U, SLOPE = tape_of_steps(TAPE, heads, at, S, 1), tape_of_steps(TAPE, heads, at, S, 2)
    OF_CHUNK, N_STATES = tape_of_chunks(TAPE, heads, at, S, NC), tape_of_n(TAPE, heads, at, S, NC, DK)
    Y = y_part(PARTS, heads, at, S, value_tile)
    DN_STATES = dn_part(PARTS, heads, at, S, NC, value_tile, DK, VALUE_TILES)
    ENTER = entering_part(PARTS, heads, at, S, NC, value_tile, DK, VALUE_TILES)
    C_STATES += at * NC * DK * DV
    DC_STATES += at * NC * DK * DV

    dC = tl.zeros((BK, BV), tl.float32)
    dn = tl.zeros((BK,), tl.float32)
    if LAST:
        dC = tl.load(DC_LAST + at * DK * DV + of_state, mask=in_state, other=0.0)
        dn = tl.load(DN_LAST + at * DK + keys, mask=(keys < DK) & (value_tile == 0), other=0.0)
    for back in tl.range(0, NC, num_stages=STAGES):
        chunk = tl.cast(NC - 1 - back, tl.int64)
        first = chunk * L
        inside = steps < left_of(S, first)
        q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        dh = load_tile(DH, first, NH * DV, steps, values, S, DV).to(tl.float32)  # (L, BV)
        u = tl.load(U + first + steps, mask=inside, other=float("inf")) - log2_scale  # (L,)
        m, decay = tl.load(OF_CHUNK + chunk * CHUNK_NUMBERS), tl.load(OF_CHUNK + chunk * CHUNK_NUMBERS + 2)
        segment = load_segments(RESETS, row * S + first, steps, inside, 0, WITH_RESETS)
        tl.store(DC_STATES + chunk * DK * DV + of_state, dC.to(DC_STATES.dtype.element_ty), mask=in_state)
        tl.store(DN_STATES + chunk * DK + keys, dn, mask=keys < DK)

        reads = power(of_segment_0(m, segment, WITH_RESETS) - u)  # (L,)
        dC = tl.dot(
            tl.trans(q), (dh * reads[:, None]).to(OPERAND), dC * decay.to(tl.float32), input_precision=PRECISION
        )
        dn = dn * decay.to(tl.float32)
        if NORMALIZE:
            slope = tl.load(SLOPE + first + steps, mask=inside, other=0.0).to(tl.float32)
            h = load_tile(H, first, NH * DV, steps, values, S, DV).to(tl.float32)
            y = tl.sum(dh * h, 1) * slope
            tl.store(Y + first + steps, y, mask=inside & (tile // VALUE_TILES == 0))
            dn += tl.sum(q.to(tl.float32) * (reads * y)[:, None], 0)
        if ENTERING:
            C = tl.load(C_STATES + chunk * DK * DV + of_state, mask=in_state, other=0.0).to(tl.float32)
            n = tl.load(N_STATES + chunk * DK + keys, mask=keys < DK, other=0.0).to(tl.float32)
            tl.store(ENTER + chunk, tl.sum(tl.sum(C * dC, 1), 0) + tl.sum(n * dn, 0))
    if not FRESH:
        tl.store(DC_FIRST + at * DK * DV + of_state, dC, mask=in_state)
        tl.store(DN_FIRST + (value_tile * heads.to(tl.int64) + at) * DK + keys, dn, mask=keys < DK)
