"""The mLSTM's Triton kernel that walks back over the states between chunks. Letters: shared.py.

y is the gradient of the normaliser times the denominator, -sign(l) (dh . h) where |l| is above the floor.
"""

import triton
import triton.language as tl

from .parts import value_part
from .shared import left_of, load_tile, of_segment_0, power, state_tile
from .tape import AT_DECAY, AT_M_BEFORE, AT_SLOPE, AT_U, load_of_keys, load_segment, of_chunk, of_n, record_of


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_backward_states(
    Q,
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
    C_STATES += at * NC * DK * DV
    DC_STATES += at * NC * DK * DV

    dC = tl.zeros((BK, BV), tl.float32)
    dn = tl.zeros((BK,), tl.float32)
    if LAST:
        dC = tl.load(DC_LAST + at * DK * DV + of_state, mask=in_state, other=0.0)
        dn = tl.load(DN_LAST + at * DK + keys, mask=(keys < DK) & (value_tile == 0), other=0.0)
    for back in tl.range(0, NC, num_stages=STAGES):
        chunk = tl.cast(NC - 1 - back, tl.int64)
        first = tl.cast((NC - 1 - back) * L, tl.int64)  # see backward.py
        inside = steps < left_of(S, first)
        q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        dh = load_tile(DH, first, NH * DV, steps, values, S, DV).to(tl.float32)  # (L, BV)
        CHUNK = record_of(TAPE, at * NC + chunk, L, DK)
        PART = value_part(PARTS, value_tile, at * NC + chunk, heads.to(tl.int64) * NC, L, DK)
        # Masked, as the steps behind the end may have none of these: outputs are computed a tile of steps at a time.
        u = tl.load(CHUNK + AT_U * L + steps, mask=inside, other=float("inf")) - log2_scale  # (L,)
        m, decay = tl.load(of_chunk(CHUNK, AT_M_BEFORE, L, DK)), tl.load(of_chunk(CHUNK, AT_DECAY, L, DK))
        segment = load_segment(CHUNK, steps, L, WITH_RESETS)
        tl.store(DC_STATES + chunk * DK * DV + of_state, dC.to(DC_STATES.dtype.element_ty), mask=in_state)
        tl.store(PART + L + keys, dn, mask=keys < DK)

        reads = power(of_segment_0(m, segment, WITH_RESETS) - u)  # (L,)
        dC = tl.dot(
            tl.trans(q), (dh * reads[:, None]).to(OPERAND), dC * decay.to(tl.float32), input_precision=PRECISION
        )
        dn = dn * decay.to(tl.float32)
        if NORMALIZE:
            slope = tl.load(CHUNK + AT_SLOPE * L + steps, mask=inside, other=0.0).to(tl.float32)
            h = load_tile(H, first, NH * DV, steps, values, S, DV).to(tl.float32)
            y = tl.sum(dh * h, 1) * slope
            tl.store(PART + steps, y, mask=tile // VALUE_TILES == 0)
            dn += tl.sum(q.to(tl.float32) * (reads * y)[:, None], 0)
        if ENTERING:
            C = tl.load(C_STATES + chunk * DK * DV + of_state, mask=in_state, other=0.0).to(tl.float32)
            n = load_of_keys(of_n(CHUNK, L), keys, DK)
            tl.store(PART + L + DK, tl.sum(tl.sum(C * dC, 1), 0) + tl.sum(n * dn, 0))
    if not FRESH:
        tl.store(DC_FIRST + at * DK * DV + of_state, dC, mask=in_state)
        tl.store(DN_FIRST + (value_tile * heads.to(tl.int64) + at) * DK + keys, dn, mask=keys < DK)
