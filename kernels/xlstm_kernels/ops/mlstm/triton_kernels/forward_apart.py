"""The mLSTM's Triton kernels forward in three launches: gates, states, outputs. Shapes and letters: shared.py."""

import triton
import triton.language as tl

from .shared import (
    finish,
    left_of,
    load_tile,
    of_segment_0,
    of_unit,
    power,
    slope,
    state_tile,
    store_tile,
)
from .tape import (
    AT_A,
    AT_DECAY,
    AT_FLOOR,
    AT_M,
    AT_M_BEFORE,
    AT_SLOPE,
    AT_U,
    AT_WRITTEN,
    load_of_keys,
    load_segment,
    of_chunk,
    of_n,
    record_of,
)


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
    at = (tl.program_id(0) // TILES).to(tl.int64)  # of (B, NH)
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    steps = tl.arange(0, L)
    keys, values = tile // VALUE_TILES * BK + tl.arange(0, BK), tile % VALUE_TILES * BV + tl.arange(0, BV)
    of_state, in_state = state_tile(keys, values, DK, DV)
    leads = tile % VALUE_TILES == 0  # has the normaliser of its keys
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    C_STATES += at * NC * DK * DV
    if FRESH:
        C = tl.zeros((BK, BV), tl.float32)
        n = tl.zeros((BK,), tl.float32)
    else:
        m = tl.load(of_chunk(record_of(TAPE, at * NC, L, DK), AT_M_BEFORE, L, DK))
        C = of_unit(tl.load(C_FIRST + at * DK * DV + of_state, mask=in_state, other=0.0), m)
        n = of_unit(tl.load(N_FIRST + at * DK + keys, mask=keys < DK, other=0.0), m)
    for chunk in tl.range(0, NC, num_stages=STAGES):
        first = tl.cast(chunk, tl.int64) * L
        k = load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        v = load_tile(V, first, v_step, steps, values, S, DV)  # (L, BV)
        CHUNK = record_of(TAPE, at * NC + chunk, L, DK)
        written = tl.load(CHUNK + AT_WRITTEN * L + steps).to(tl.float32)
        decay = tl.load(of_chunk(CHUNK, AT_DECAY, L, DK)).to(tl.float32)
        tl.store(
            C_STATES + tl.cast(chunk, tl.int64) * DK * DV + of_state, C.to(C_STATES.dtype.element_ty), mask=in_state
        )
        tl.store(of_n(CHUNK, L) + keys, n, mask=(keys < DK) & leads)
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
    at = (block // blocks).to(tl.int64)  # of (B, NH)
    block = block % blocks
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    chunk = block // (L // BM)
    chunk_first = chunk * (L // BM)
    steps, keys, values = tl.arange(0, BM), tl.arange(0, BK), tile * BV + tl.arange(0, BV)
    first = block.to(tl.int64) * BM
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    C_STATES += (at * NC + chunk) * DK * DV
    CHUNK = record_of(TAPE, at * NC + chunk, L, DK)
    here = (block - chunk_first) * BM + steps
    M, log2_floor = tl.load(CHUNK + AT_M * L + here), tl.load(CHUNK + AT_FLOOR * L + here)
    m = tl.load(of_chunk(CHUNK, AT_M_BEFORE, L, DK))
    segment = load_segment(CHUNK, here, L, WITH_RESETS)

    reads = power(of_segment_0(m, segment, WITH_RESETS) - M)  # (BM,)
    q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (BM, BK)
    of_state, in_state = state_tile(keys, values, DK, DV)
    C = tl.load(C_STATES + of_state, mask=in_state, other=0.0)
    numerator = tl.dot(q, C, input_precision=PRECISION)  # (BM, BV)
    n = load_of_keys(of_n(CHUNK, L), keys, DK)
    normaliser = tl.sum(q.to(tl.float32) * n[None, :], 1)
    if KEY_TILES > 1:
        for key_tile in range(1, KEY_TILES):
            more = key_tile * BK + tl.arange(0, BK)
            q_more = load_tile(Q, first, q_step, steps, more, S, DK).to(OPERAND)
            of_state, in_state = state_tile(more, values, DK, DV)
            C = tl.load(C_STATES + of_state, mask=in_state, other=0.0)
            numerator = tl.dot(q_more, C, numerator, input_precision=PRECISION)
            n = load_of_keys(of_n(CHUNK, L), more, DK)
            normaliser += tl.sum(q_more.to(tl.float32) * n[None, :], 1)
    numerator *= reads[:, None]
    normaliser *= reads
    for source in tl.range(chunk_first, block + 1, num_stages=STAGES):
        start = tl.cast(source, tl.int64) * BM
        there = (source - chunk_first) * BM + steps
        k = load_tile(K, start, k_step, steps, keys, S, DK).to(OPERAND)
        v = load_tile(V, start, v_step, steps, values, S, DV).to(OPERAND)
        a = tl.load(CHUNK + AT_A * L + there, mask=steps < left_of(S, start), other=-float("inf"))
        visible = here[:, None] >= there[None, :]
        if WITH_RESETS:
            visible = visible & (segment[:, None] == load_segment(CHUNK, there, L, WITH_RESETS)[None, :])
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
        if NORMALIZE:
            tl.store(CHUNK + AT_U * L + here, M + tl.log2(denominator), mask=leads)
            tl.store(CHUNK + AT_SLOPE * L + here, slope(normaliser, floor), mask=leads)
        else:
            tl.store(CHUNK + AT_SLOPE * L + here, tl.zeros_like(M), mask=leads)
            tl.store(CHUNK + AT_U * L + here, M + log2_floor, mask=leads)
