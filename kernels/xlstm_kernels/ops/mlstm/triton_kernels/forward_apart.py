"""The mLSTM's Triton kernels forward in three launches: gates, states, outputs. Shapes and letters: shared.py."""

import triton
import triton.language as tl

from .shared import (
    CHUNK_NUMBERS,
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
    slope,
    state_tile,
    store_tile,
    tape_of_chunks,
    tape_of_n,
    tape_of_steps,
    tape_of_steps_apart,
    to_natural,
)


@triton.jit
def _then(kept_x, most_x, kept_y, most_y):
    """The map m -> max(kept + m, most) of some chunks, then that of later ones."""
    return kept_x + kept_y, tl.maximum(kept_y + most_x, most_y)


@triton.jit(do_not_specialize=["S", "NH", "g_batch", "g_step", "g_head"])
def mlstm_gates(
    I,  # noqa: E741
    F,
    RESETS,
    M_FIRST,
    M_LAST,
    TAPE,
    g_batch,
    g_step,
    g_head,
    S,
    NH,
    DK: tl.constexpr,
    L: tl.constexpr,
    CHUNKS: tl.constexpr,
    FRESH: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    LOGS: tl.constexpr,
):
    """One program a head of a row: all that depends on gates and resets alone, CHUNKS chunks at a time."""
    heads = tl.num_programs(0)
    at = tl.program_id(0).to(tl.int64)  # of (B, NH)
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    chunks, steps = tl.arange(0, CHUNKS), tl.arange(0, L)
    A, M_OUT = tape_of_steps(TAPE, heads, at, S, 0), tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 1)
    WRITTEN = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 0)
    SEGMENT = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 3)
    FLOOR, OF_CHUNK = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 2), tape_of_chunks(TAPE, heads, at, S, NC)
    m_natural = tl.cast(-float("inf"), tl.float32)
    if not FRESH:
        m_natural = load_m(M_FIRST, at, RESETS, row, S, WITH_RESETS)
    for first in range(0, NC, CHUNKS):
        chunk = (first + chunks).to(tl.int64)
        t = chunk[:, None] * L + steps[None, :]  # (CHUNKS, L)
        inside = t < S
        i, logf = load_gates(I, F, row * g_batch + t * g_step + head * g_head, inside, LOGS)
        segment = load_segments(RESETS, row * S, t, inside, 1, WITH_RESETS)
        b = tl.cumsum(logf, 1)
        a = i - b
        forgotten = tl.sum(logf, 1)  # (CHUNKS,)
        if WITH_RESETS:
            last_segment = tl.max(segment, 1)
            _, M = tl.associative_scan((segment, a), 1, largest_of_segment)
            to_end = tl.where(segment == last_segment[:, None], a, -float("inf"))
        else:
            last_segment = tl.zeros((CHUNKS,), tl.int32)
            M = tl.associative_scan(a, 1, largest)
            to_end = a
        most = tl.max(to_end, 1)
        carried, written = tl.associative_scan(
            (of_segment_0(forgotten, last_segment, WITH_RESETS), forgotten + most), 0, _then
        )
        natural_after = to_natural(tl.maximum(carried + from_natural(m_natural, LOGS), written))
        before = chunks[:, None] == chunks[None, :] + 1
        natural_before = tl.sum(tl.where(before, natural_after[None, :], 0.0), 1)
        natural_before = tl.where(chunks == 0, m_natural, natural_before)
        m_natural = tl.sum(tl.where(chunks == CHUNKS - 1, natural_after, 0.0), 0)
        m_before, m_after = from_natural(natural_before, LOGS), from_natural(natural_after, LOGS)

        kept = of_segment_0(m_before, last_segment, WITH_RESETS)
        closing = closing_exponent(m_after, forgotten, tl.maximum(kept, most))
        tl.store(OF_CHUNK + chunk * CHUNK_NUMBERS, m_before, mask=chunk < NC)
        tl.store(OF_CHUNK + chunk * CHUNK_NUMBERS + 1, closing, mask=chunk < NC)
        tl.store(OF_CHUNK + chunk * CHUNK_NUMBERS + 2, power(kept + closing), mask=chunk < NC)
        M = tl.maximum(tl.maximum(of_segment_0(m_before[:, None], segment, WITH_RESETS), M), LOWEST)
        tl.store(A + t, a, mask=inside)
        tl.store(WRITTEN + t, power(to_end + closing[:, None]), mask=inside)
        tl.store(M_OUT + t, M, mask=inside)
        tl.store(FLOOR + t, -(b + M), mask=inside)
        if WITH_RESETS:
            tl.store(SEGMENT + t, segment, mask=inside)
    tl.store(M_LAST + at, m_natural)


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_states(
    K,
    V,
    C_FIRST,
    N_FIRST,
    C_LAST,
    N_LAST,
    TAPE,
    C_STATES,
    k_batch,
    k_step,
    k_head,
    v_batch,
    v_step,
    v_head,
    S,
    NH,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    L: tl.constexpr,
    FRESH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program a (BK, BV) tile of the memory of a head of a row, through all chunks."""
    VALUE_TILES: tl.constexpr = (DV + BV - 1) // BV
    TILES: tl.constexpr = (DK + BK - 1) // BK * VALUE_TILES
    tile = tl.program_id(0) % TILES
    heads = tl.num_programs(0) // TILES
    at = (tl.program_id(0) // TILES).to(tl.int64)  # of (B, NH)
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    steps = tl.arange(0, L)
    keys, values = tile // VALUE_TILES * BK + tl.arange(0, BK), tile % VALUE_TILES * BV + tl.arange(0, BV)
    of_state, in_state = state_tile(keys, values, DK, DV)
    leads = tile % VALUE_TILES == 0  # has the normaliser of its keys
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    WRITTEN = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 0)
    OF_CHUNK = tape_of_chunks(TAPE, heads, at, S, NC)
    N_STATES = tape_of_n(TAPE, heads, at, S, NC, DK)
    C_STATES += at * NC * DK * DV
    if FRESH:
        C = tl.zeros((BK, BV), tl.float32)
        n = tl.zeros((BK,), tl.float32)
    else:
        m = tl.load(OF_CHUNK)
        C = of_unit(tl.load(C_FIRST + at * DK * DV + of_state, mask=in_state, other=0.0), m)
        n = of_unit(tl.load(N_FIRST + at * DK + keys, mask=keys < DK, other=0.0), m)
    for chunk in tl.range(0, NC, num_stages=STAGES):
        first = tl.cast(chunk, tl.int64) * L
        k = load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        v = load_tile(V, first, v_step, steps, values, S, DV)  # (L, BV)
        written = tl.load(WRITTEN + first + steps, mask=steps < left_of(S, first), other=0.0).to(tl.float32)
        decay = tl.load(OF_CHUNK + chunk * CHUNK_NUMBERS + 2).to(tl.float32)
        tl.store(
            C_STATES + tl.cast(chunk, tl.int64) * DK * DV + of_state, C.to(C_STATES.dtype.element_ty), mask=in_state
        )
        tl.store(N_STATES + tl.cast(chunk, tl.int64) * DK + keys, n, mask=(keys < DK) & leads)
        written_v = (v.to(tl.float32) * written[:, None]).to(OPERAND)
        C = tl.dot(tl.trans(k), written_v, C * decay, input_precision=PRECISION)
        n = n * decay + tl.sum(k.to(tl.float32) * written[:, None], 0)
    tl.store(C_LAST + at * DK * DV + of_state, C, mask=in_state)
    tl.store(N_LAST + at * DK + keys, n, mask=(keys < DK) & leads)


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_outputs(
    Q,
    K,
    V,
    H,
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
    S,
    NH,
    scale,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BM: tl.constexpr,
    L: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RECORD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program BM steps of a value tile of a head of a row, all in parallel, from the state before their chunk."""
    TILES: tl.constexpr = (DV + BV - 1) // BV
    KEY_TILES: tl.constexpr = (DK + BK - 1) // BK
    tile = tl.program_id(0) % TILES
    block = tl.program_id(0) // TILES
    blocks = tl.cdiv(S, BM)
    heads = tl.num_programs(0) // TILES // blocks
    at = (block // blocks).to(tl.int64)  # of (B, NH)
    block = block % blocks
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    chunk = block // (L // BM)
    steps, keys, values = tl.arange(0, BM), tl.arange(0, BK), tile * BV + tl.arange(0, BV)
    first = block.to(tl.int64) * BM
    inside = steps < left_of(S, first)
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    C_STATES += (at * NC + chunk) * DK * DV
    A, SEGMENT = tape_of_steps(TAPE, heads, at, S, 0), tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 3)
    N_STATES = tape_of_n(TAPE, heads, at, S, NC, DK) + chunk * DK
    M = tl.load(tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 1) + first + steps, mask=inside, other=0.0)
    log2_floor = tl.load(tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 2) + first + steps, mask=inside, other=0.0)
    m = tl.load(tape_of_chunks(TAPE, heads, at, S, NC) + chunk * CHUNK_NUMBERS)
    segment = tl.zeros((BM,), tl.int32)
    if WITH_RESETS:
        segment = tl.load(SEGMENT + first + steps, mask=inside, other=-1.0).to(tl.int32)

    reads = power(of_segment_0(m, segment, WITH_RESETS) - M)  # (BM,)
    q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (BM, BK)
    of_state, in_state = state_tile(keys, values, DK, DV)
    C = tl.load(C_STATES + of_state, mask=in_state, other=0.0)
    numerator = tl.dot(q, C, input_precision=PRECISION)  # (BM, BV)
    n = tl.load(N_STATES + keys, mask=keys < DK, other=0.0).to(tl.float32)
    normaliser = tl.sum(q.to(tl.float32) * n[None, :], 1)
    if KEY_TILES > 1:
        for key_tile in range(1, KEY_TILES):
            more = key_tile * BK + tl.arange(0, BK)
            q_more = load_tile(Q, first, q_step, steps, more, S, DK).to(OPERAND)
            of_state, in_state = state_tile(more, values, DK, DV)
            C = tl.load(C_STATES + of_state, mask=in_state, other=0.0)
            numerator = tl.dot(q_more, C, numerator, input_precision=PRECISION)
            n = tl.load(N_STATES + more, mask=more < DK, other=0.0).to(tl.float32)
            normaliser += tl.sum(q_more.to(tl.float32) * n[None, :], 1)
    numerator *= reads[:, None]
    normaliser *= reads
    for source in tl.range(chunk * (L // BM), block + 1, num_stages=STAGES):
        start = tl.cast(source, tl.int64) * BM
        source_inside = steps < left_of(S, start)
        k = load_tile(K, start, k_step, steps, keys, S, DK).to(OPERAND)
        v = load_tile(V, start, v_step, steps, values, S, DV).to(OPERAND)
        a = tl.load(A + start + steps, mask=source_inside, other=-float("inf"))
        visible = steps[:, None] + (block - source) * BM >= steps[None, :]
        if WITH_RESETS:
            visible = visible & (
                segment[:, None]
                == tl.load(SEGMENT + start + steps, mask=source_inside, other=-2.0).to(tl.int32)[None, :]
            )
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if KEY_TILES > 1:
            for key_tile in range(1, KEY_TILES):
                more = key_tile * BK + tl.arange(0, BK)
                q_more = load_tile(Q, first, q_step, steps, more, S, DK).to(OPERAND)
                k_more = load_tile(K, start, k_step, steps, more, S, DK).to(OPERAND)
                scores = tl.dot(q_more, tl.trans(k_more), scores, input_precision=PRECISION)
        scores *= tl.where(visible, power(a[None, :] - M[:, None]), 0.0)
        normaliser += tl.sum(scores, 1)
        numerator = tl.dot(scores.to(OPERAND), v, numerator, input_precision=PRECISION)

    floor = power(log2_floor)
    normaliser, denominator, factor = finish(normaliser, floor, scale, NORMALIZE)
    store_tile(H + row * S * NH * DV + head * DV, numerator * factor[:, None], first, NH * DV, steps, values, S, DV)
    if RECORD:
        leads = tile == 0
        U, SLOPE = tape_of_steps(TAPE, heads, at, S, 1), tape_of_steps(TAPE, heads, at, S, 2)
        if NORMALIZE:
            tl.store(U + first + steps, M + tl.log2(denominator), mask=inside & leads)
            tl.store(SLOPE + first + steps, slope(normaliser, floor), mask=inside & leads)
        else:
            tl.store(SLOPE + first + steps, tl.zeros_like(M), mask=inside & leads)
            tl.store(U + first + steps, M + log2_floor, mask=inside & leads)
