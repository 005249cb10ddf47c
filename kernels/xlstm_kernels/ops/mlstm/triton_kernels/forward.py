"""The mLSTM's Triton kernel forward in one launch. Shapes and letters: shared.py."""

import triton
import triton.language as tl

from .gates import record_gates
from .shared import finish, load_tile, of_segment_0, of_unit, power, slope, state_tile, store_tile
from .tape import (
    AT_A,
    AT_DECAY,
    AT_FLOOR,
    AT_M,
    AT_M_BEFORE,
    AT_SLOPE,
    AT_U,
    AT_WRITTEN,
    load_segment,
    of_chunk,
    of_n,
    record_of,
)


@triton.jit(do_not_specialize=["S", "NH", "g_batch", "g_step", "g_head"])
def mlstm_forward(
    Q,
    K,
    V,
    I,  # noqa: E741
    F,
    RESETS,
    C_FIRST,
    N_FIRST,
    M_FIRST,
    H,
    C_LAST,
    N_LAST,
    M_LAST,
    TAPE,
    C_STATES,
    q_batch,
    q_step,
    q_head,
    k_batch,
    k_step,
    k_head,
    v_batch,
    v_step,
    v_head,
    g_batch,
    g_step,
    g_head,
    S,
    NH,
    scale,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    L: tl.constexpr,
    CHUNKS: tl.constexpr,
    FRESH: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RECORD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    LOGS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program a value tile of a head of a row: the chunks one after the other, their state in registers."""
    TILES: tl.constexpr = (DV + BV - 1) // BV
    tile = tl.program_id(0) % TILES
    at = (tl.program_id(0) // TILES).to(tl.int64)  # of (B, NH)
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    steps, keys, values = tl.arange(0, L), tl.arange(0, BK), tile * BV + tl.arange(0, BV)
    causal = steps[:, None] >= steps[None, :]
    of_state, in_state = state_tile(keys, values, DK, DV)
    leads = tile == 0  # writes what does not depend on the values
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    H += row * S * NH * DV + head * DV
    C_STATES += at * NC * DK * DV

    # Programs of further tiles of values write the same numbers, so that none waits for another.
    record_gates(
        *(I, F, RESETS, M_FIRST, M_LAST, TAPE, g_batch, g_step, g_head, S, NH, at),
        *(DK, L, CHUNKS, FRESH, WITH_RESETS, RECORD, LOGS),
    )
    tl.debug_barrier()

    if FRESH:
        C = tl.zeros((BK, BV), tl.float32)
        n = tl.zeros((BK,), tl.float32)
    else:
        m = tl.load(of_chunk(record_of(TAPE, at * NC, L, DK), AT_M_BEFORE, L, DK))
        C = of_unit(tl.load(C_FIRST + at * DK * DV + of_state, mask=in_state, other=0.0), m)  # (BK, BV)
        n = of_unit(tl.load(N_FIRST + at * DK + keys, mask=keys < DK, other=0.0), m)  # (BK,)
    for chunk in tl.range(0, NC, num_stages=STAGES):
        first = tl.cast(chunk, tl.int64) * L
        q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        k = load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)
        v = load_tile(V, first, v_step, steps, values, S, DV).to(OPERAND)  # (L, BV)
        CHUNK = record_of(TAPE, at * NC + chunk, L, DK)
        a, M = tl.load(CHUNK + AT_A * L + steps), tl.load(CHUNK + AT_M * L + steps)  # (L,)
        log2_floor = tl.load(CHUNK + AT_FLOOR * L + steps)
        written = tl.load(CHUNK + AT_WRITTEN * L + steps).to(tl.float32)
        m = tl.load(of_chunk(CHUNK, AT_M_BEFORE, L, DK))
        decay = tl.load(of_chunk(CHUNK, AT_DECAY, L, DK)).to(tl.float32)
        segment = load_segment(CHUNK, steps, L, WITH_RESETS)
        visible = causal
        if WITH_RESETS:
            visible = causal & (segment[:, None] == segment[None, :])
        if RECORD:
            tl.store(
                C_STATES + tl.cast(chunk, tl.int64) * DK * DV + of_state, C.to(C_STATES.dtype.element_ty), mask=in_state
            )
            tl.store(of_n(CHUNK, L) + keys, n, mask=(keys < DK) & leads)

        reads = power(of_segment_0(m, segment, WITH_RESETS) - M)  # (L,)
        numerator = tl.dot(q, C.to(OPERAND), input_precision=PRECISION) * reads[:, None]  # (L, BV)
        # Weighed after the product, which keeps fewer numbers alive: a tenth of the time at 64 dims.
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (L, L)
        scores *= tl.where(visible, power(a[None, :] - M[:, None]), 0.0)
        numerator = tl.dot(scores.to(OPERAND), v, numerator, input_precision=PRECISION)
        floor = power(log2_floor)
        normaliser = floor
        if NORMALIZE:
            normaliser = tl.sum(scores, 1) + reads * tl.sum(q.to(tl.float32) * n[None, :], 1)
        normaliser, denominator, factor = finish(normaliser, floor, scale, NORMALIZE)
        store_tile(H, numerator * factor[:, None], first, NH * DV, steps, values, S, DV)

        written_v = (v.to(tl.float32) * written[:, None]).to(OPERAND)
        C = tl.dot(tl.trans(k), written_v, C * decay, input_precision=PRECISION)
        n = n * decay + tl.sum(k.to(tl.float32) * written[:, None], 0)
        if RECORD:
            if NORMALIZE:
                tl.store(CHUNK + AT_SLOPE * L + steps, slope(normaliser, floor), mask=leads)
                tl.store(CHUNK + AT_U * L + steps, M + tl.log2(denominator), mask=leads)
            else:
                tl.store(CHUNK + AT_SLOPE * L + steps, tl.zeros((L,), LOGS), mask=leads)
                tl.store(CHUNK + AT_U * L + steps, M + log2_floor, mask=leads)

    tl.store(C_LAST + at * DK * DV + of_state, C, mask=in_state)
    tl.store(N_LAST + at * DK + keys, n, mask=(keys < DK) & leads)
