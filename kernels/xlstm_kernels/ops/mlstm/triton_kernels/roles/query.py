"""dq of the steps that a program reads with, from the state before their chunk and each other. See ../shared.py."""

import triton
import triton.language as tl

from ..parts import leaving_part, load_dn, load_segment, load_y, role_part
from ..shared import (
    CHUNK_NUMBERS,
    left_of,
    load_tile,
    of_segment_0,
    power,
    state_tile,
    store_tile,
    tape_of_chunks,
    tape_of_n,
    tape_of_steps,
    tape_of_steps_apart,
)


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
    KEY_ROLES: tl.constexpr = (DK + OUT - 1) // OUT
    NC = tl.cdiv(S, L)
    chunk_first = block // (L // BM) * (L // BM)
    chunk = (block // (L // BM)).to(tl.int64)
    steps = tl.arange(0, BM)
    first = block.to(tl.int64) * BM
    inside = steps < left_of(S, first)
    A, U = tape_of_steps(TAPE, heads, at, S, 0), tape_of_steps(TAPE, heads, at, S, 1)
    SEGMENT = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 3)
    segment = load_segment(SEGMENT + first, steps, inside, -1.0, WITH_RESETS)
    keys, values = key_role * OUT + tl.arange(0, OUT), tl.arange(0, BV)
    u = tl.load(U + first + steps, mask=inside, other=float("inf")) - log2_scale
    OF_CHUNK = tape_of_chunks(TAPE, heads, at, S, NC) + chunk * CHUNK_NUMBERS
    m = tl.load(OF_CHUNK)
    n = tl.load(tape_of_n(TAPE, heads, at, S, NC, DK) + chunk * DK + keys, mask=keys < DK, other=0.0)
    y = tl.zeros((BM,), tl.float32)
    if NORMALIZE:
        y = load_y(PARTS, heads, at, S, first, steps, Y_TILES)
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
        leaving = n.to(tl.float32) * load_dn(PARTS, heads, at, S, NC, chunk, keys, DK, Y_TILES)
        for tile in range(VALUE_TILES):
            of_state, in_state = state_tile(keys, values + tile * BV, DK, DV)
            memory = tl.load(C_STATES + of_state, mask=in_state, other=0.0).to(tl.float32)
            leaving += tl.sum(memory * tl.load(DC_STATES + of_state, mask=in_state, other=0.0).to(tl.float32), 1)
        decay = tl.load(OF_CHUNK + 2).to(tl.float32)
        LEAVING = leaving_part(PARTS, heads, at, S, NC, key_role, DK, Y_TILES, KEY_ROLES)
        tl.store(LEAVING + chunk, decay * tl.sum(leaving, 0))
    reads = power(of_segment_0(m, segment, WITH_RESETS) - u)
    dq = (dq + y[:, None] * n.to(tl.float32)[None, :]) * reads[:, None]
    own_q = load_tile(Q, first, q_step, steps, keys, S, DK).to(tl.float32)
    FROM_STATE = role_part(PARTS, heads, at, S, NC, 1, key_role, DK, Y_TILES, KEY_ROLES)
    tl.store(FROM_STATE + first + steps, tl.sum(own_q * dq, 1), mask=inside)
    for source in tl.range(chunk_first, block + 1, num_stages=STAGES):
        start = tl.cast(source, tl.int64) * BM
        source_inside = steps < left_of(S, start)
        v = load_tile(V, start, v_step, steps, values, S, DV).to(OPERAND)
        k = load_tile(K, start, k_step, steps, keys, S, DK).to(OPERAND)
        a = tl.load(A + start + steps, mask=source_inside, other=-float("inf"))
        visible = steps[:, None] + (block - source) * BM >= steps[None, :]
        if WITH_RESETS:
            visible = visible & (
                segment[:, None] == load_segment(SEGMENT + start, steps, source_inside, -2.0, WITH_RESETS)[None, :]
            )
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
    Q_DQ = role_part(PARTS, heads, at, S, NC, 0, key_role, DK, Y_TILES, KEY_ROLES)
    tl.store(Q_DQ + first + steps, tl.sum(own_q * dq, 1), mask=inside)
