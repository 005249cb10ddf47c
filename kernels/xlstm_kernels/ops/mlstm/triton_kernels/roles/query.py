"""dq of the steps that a program reads with, from the state before their chunk and each other. See ../shared.py."""

import triton
import triton.language as tl

from ..parts import AT_FROM_STATE, AT_Q_DQ, ROLE_NUMBERS, load_dn, load_y, role_part
from ..shared import left_of, load_tile, of_segment_0, power, state_tile, store_tile
from ..tape import AT_A, AT_DECAY, AT_M_BEFORE, AT_U, load_of_keys, load_segment, of_chunk, of_n, record_of


@triton.jit
def query_role(
    Q,
    K,
    V,
    DH,
    TAPE,
    C_STATES,
    PARTS,
    DC_STATES,
    DQ,
    heads,
    at,
    block,
    key_role,
    q_step,
    k_step,
    v_step,
    dh_step,
    dq_step,
    S,
    log2_scale,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BM: tl.constexpr,
    OUT: tl.constexpr,
    L: tl.constexpr,
    Y_TILES: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dq of OUT keys, for the steps that the program's own read."""
    VALUE_TILES: tl.constexpr = (DV + BV - 1) // BV
    NC = tl.cdiv(S, L)
    chunk_first = block // (L // BM) * (L // BM)
    chunk, chunks = at * NC + block // (L // BM), heads.to(tl.int64) * NC
    CHUNK, PART = record_of(TAPE, chunk, L, DK), role_part(PARTS, key_role, chunk, chunks, L, DK, Y_TILES)
    steps = tl.arange(0, BM)
    here = (block - chunk_first) * BM + steps
    first = block.to(tl.int64) * BM
    segment = load_segment(CHUNK, here, L, WITH_RESETS)
    keys, values = key_role * OUT + tl.arange(0, OUT), tl.arange(0, BV)
    u = tl.load(CHUNK + AT_U * L + here) - log2_scale
    m = tl.load(of_chunk(CHUNK, AT_M_BEFORE, L, DK))
    n = load_of_keys(of_n(CHUNK, L), keys, DK)
    y = tl.zeros((BM,), tl.float32)
    if NORMALIZE:
        y = load_y(PARTS, chunk, chunks, here, L, DK, Y_TILES)
    dh = load_tile(DH, first, dh_step, steps, values, S, DV).to(OPERAND)  # (BM, BV)
    of_state, in_state = state_tile(keys, values, DK, DV)
    C = tl.load(C_STATES + of_state, mask=in_state, other=0.0)
    dq = tl.dot(dh, tl.trans(C), input_precision=PRECISION)  # (BM, OUT)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            more = values + tile * BV
            of_state, in_state = state_tile(keys, more, DK, DV)
            dh_more = load_tile(DH, first, dh_step, steps, more, S, DV).to(OPERAND)
            C = tl.load(C_STATES + of_state, mask=in_state, other=0.0)
            dq = tl.dot(dh_more, tl.trans(C), dq, input_precision=PRECISION)
    if block == chunk_first:  # <C, dC> + <n, dn> of what the state before the chunk hands on
        leaving = n * load_dn(PARTS, chunk, chunks, keys, L, DK, Y_TILES)
        for tile in range(VALUE_TILES):
            of_state, in_state = state_tile(keys, values + tile * BV, DK, DV)
            memory = tl.load(C_STATES + of_state, mask=in_state, other=0.0).to(tl.float32)
            leaving += tl.sum(memory * tl.load(DC_STATES + of_state, mask=in_state, other=0.0).to(tl.float32), 1)
        decay = tl.load(of_chunk(CHUNK, AT_DECAY, L, DK)).to(tl.float32)
        tl.store(PART + ROLE_NUMBERS * L, decay * tl.sum(leaving, 0))
    reads = power(of_segment_0(m, segment, WITH_RESETS) - u)
    dq = (dq + y[:, None] * n[None, :]) * reads[:, None]
    own_q = load_tile(Q, first, q_step, steps, keys, S, DK).to(tl.float32)
    tl.store(PART + AT_FROM_STATE * L + here, tl.sum(own_q * dq, 1))
    for source in tl.range(chunk_first, block + 1, num_stages=STAGES):
        start = tl.cast(source, tl.int64) * BM
        there = (source - chunk_first) * BM + steps
        v = load_tile(V, start, v_step, steps, values, S, DV).to(OPERAND)
        k = load_tile(K, start, k_step, steps, keys, S, DK).to(OPERAND)
        a = tl.load(CHUNK + AT_A * L + there, mask=steps < left_of(S, start), other=-float("inf"))
        visible = here[:, None] >= there[None, :]
        if WITH_RESETS:
            visible = visible & (segment[:, None] == load_segment(CHUNK, there, L, WITH_RESETS)[None, :])
        dscores = tl.dot(dh, tl.trans(v), input_precision=PRECISION)  # (BM, BM), rows read
        if VALUE_TILES > 1:
            for tile in range(1, VALUE_TILES):
                more = values + tile * BV
                dh_more = load_tile(DH, first, dh_step, steps, more, S, DV).to(OPERAND)
                v_more = load_tile(V, start, v_step, steps, more, S, DV).to(OPERAND)
                dscores = tl.dot(dh_more, tl.trans(v_more), dscores, input_precision=PRECISION)
        dscores = (dscores + y[:, None]) * tl.where(visible, power(a[None, :] - u[:, None]), 0.0)
        dq = tl.dot(dscores.to(OPERAND), k, dq, input_precision=PRECISION)
    store_tile(DQ, dq, first, dq_step, steps, keys, S, DK)
    tl.store(PART + AT_Q_DQ * L + here, tl.sum(own_q * dq, 1))
