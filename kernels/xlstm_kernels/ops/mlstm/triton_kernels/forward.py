"""The mLSTM's Triton kernel forward in one launch. Shapes and letters: shared.py."""

import triton
import triton.language as tl

from .shared import (
    LOWEST,
    closing_exponent,
    finish,
    from_natural,
    largest,
    largest_of_segment,
    left_of,
    load_gates,
    load_m,
    load_segments,
    load_tile,
    of_segment_0,
    of_unit,
    power,
    sigmoid_of_negative,
    slope,
    state_tile,
    store_tile,
    to_natural,
)
from .tape import (
    AT_A,
    AT_CLOSING,
    AT_DECAY,
    AT_FORGETS,
    AT_M_BEFORE,
    AT_SEGMENT,
    AT_SLOPE,
    AT_U,
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
    I += row * g_batch + head * g_head  # noqa: E741
    F += row * g_batch + head * g_head
    C_STATES += at * NC * DK * DV

    if FRESH:
        C = tl.zeros((BK, BV), tl.float32)
        n = tl.zeros((BK,), tl.float32)
        m_natural = tl.cast(-float("inf"), tl.float32)
    else:
        m_natural = load_m(M_FIRST, at, RESETS, row, S, WITH_RESETS)
        C = of_unit(tl.load(C_FIRST + at * DK * DV + of_state, mask=in_state, other=0.0), m_natural)  # (BK, BV)
        n = of_unit(tl.load(N_FIRST + at * DK + keys, mask=keys < DK, other=0.0), m_natural)  # (BK,)
    for chunk in tl.range(0, NC, num_stages=STAGES):
        first = tl.cast(chunk, tl.int64) * L
        inside = steps < left_of(S, first)
        q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        k = load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)
        v = load_tile(V, first, v_step, steps, values, S, DV).to(OPERAND)  # (L, BV)
        i, logf, f = load_gates(I + first * g_step, F + first * g_step, steps * g_step, inside, LOGS)  # (L,)
        segment = load_segments(RESETS, row * S + first, steps, inside, 0, WITH_RESETS)
        m = from_natural(m_natural, LOGS)
        if RECORD:
            CHUNK = record_of(TAPE, at * NC + chunk, L, DK)
            tl.store(
                C_STATES + tl.cast(chunk, tl.int64) * DK * DV + of_state, C.to(C_STATES.dtype.element_ty), mask=in_state
            )
            tl.store(of_n(CHUNK, L) + keys, n, mask=(keys < DK) & leads)

        b = tl.cumsum(logf, 0)
        a = i - b
        visible, to_end, last_segment = causal, a, 0
        if WITH_RESETS:
            last_segment = tl.max(segment, 0)
            visible = causal & (segment[:, None] == segment[None, :])
            to_end = tl.where(segment == last_segment, a, -float("inf"))
            _, M = tl.associative_scan((segment, a), 0, largest_of_segment)
        else:
            M = tl.associative_scan(a, 0, largest)
        from_state = of_segment_0(m, segment, WITH_RESETS)
        M = tl.maximum(tl.maximum(from_state, M), LOWEST)  # (L,)

        reads = power(from_state - M)  # (L,)
        numerator = tl.dot(q, C.to(OPERAND), input_precision=PRECISION) * reads[:, None]  # (L, BV)
        # Weighed after the product, which keeps fewer numbers alive: a tenth of the time at 64 dims.
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (L, L)
        scores *= tl.where(visible, power(a[None, :] - M[:, None]), 0.0)
        numerator = tl.dot(scores.to(OPERAND), v, numerator, input_precision=PRECISION)
        floor = power(-(b + M))
        normaliser = floor
        if NORMALIZE:
            normaliser = tl.sum(scores, 1) + reads * tl.sum(q.to(tl.float32) * n[None, :], 1)
        normaliser, denominator, factor = finish(normaliser, floor, scale, NORMALIZE)
        store_tile(H, numerator * factor[:, None], first, NH * DV, steps, values, S, DV)

        forgotten = tl.sum(logf, 0)
        kept = of_segment_0(m, last_segment, WITH_RESETS)
        most = tl.maximum(kept, tl.max(to_end, 0))
        m_natural = to_natural(forgotten + most)
        closing = closing_exponent(from_natural(m_natural, LOGS), forgotten, most)
        decay = power(kept + closing)
        written = power(to_end + closing)  # (L,)
        written_v = (v.to(tl.float32) * written[:, None]).to(OPERAND)
        C = tl.dot(tl.trans(k), written_v, C * decay, input_precision=PRECISION)
        n = n * decay + tl.sum(k.to(tl.float32) * written[:, None], 0)
        if RECORD:
            tl.store(of_chunk(CHUNK, AT_M_BEFORE, L, DK), m, mask=leads)
            tl.store(of_chunk(CHUNK, AT_CLOSING, L, DK), closing, mask=leads)
            tl.store(of_chunk(CHUNK, AT_DECAY, L, DK), decay, mask=leads)
            tl.store(CHUNK + AT_A * L + steps, a, mask=leads)
            tl.store(CHUNK + AT_FORGETS * L + steps, sigmoid_of_negative(f), mask=leads)
            if WITH_RESETS:
                tl.store(CHUNK + AT_SEGMENT * L + steps, segment, mask=leads)
            if NORMALIZE:
                tl.store(CHUNK + AT_SLOPE * L + steps, slope(normaliser, floor), mask=leads)
                tl.store(CHUNK + AT_U * L + steps, M + tl.log2(denominator), mask=leads)
            else:
                tl.store(CHUNK + AT_SLOPE * L + steps, tl.zeros((L,), LOGS), mask=leads)
                tl.store(CHUNK + AT_U * L + steps, -b, mask=leads)

    tl.store(C_LAST + at * DK * DV + of_state, C, mask=in_state)
    tl.store(N_LAST + at * DK + keys, n, mask=(keys < DK) & leads)
    tl.store(M_LAST + at, m_natural, mask=leads)
