"""The way back through wide heads, whose chunk's gradients outgrow the registers of a program.

A program takes BM steps and one of three roles, the gradient of a tile of queries, of keys or of values; what the
gates get is summed up afterwards, by a kernel of backward.py. Letters: shared.py.
"""

import triton
import triton.language as tl

from .parts import leaving_part, load_dn, load_segment, load_y, role_part
from .shared import (
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
def _chunk_weights(a, u, steps, ahead, segment_s, segment_t, WITH_RESETS: tl.constexpr):
    """Of step s (rows) in what step t (columns), of a tile ``ahead`` steps later, reads."""
    visible = steps[:, None] <= steps[None, :] + ahead
    if WITH_RESETS:
        visible = visible & (segment_s[:, None] == segment_t[None, :])
    return tl.where(visible, power(a[:, None] - u[None, :]), 0.0)


@triton.jit
def _query_role(
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


@triton.jit
def _key_role(
    Q,
    K,
    V,
    DH,
    TAPE,
    C_STATES,
    PARTS,
    DC_STATES,
    DK_OUT,
    heads,
    at,
    block,
    key_role,
    q_step,
    k_step,
    v_step,
    dh_step,
    dk_step,
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
    """dk of OUT keys, for the program's own steps, which write."""
    VALUE_TILES: tl.constexpr = (DV + BV - 1) // BV
    KEY_ROLES: tl.constexpr = (DK + OUT - 1) // OUT
    NC, blocks = tl.cdiv(S, L), tl.cdiv(S, BM)
    chunk = (block // (L // BM)).to(tl.int64)
    chunk_end = tl.minimum((block // (L // BM) + 1) * (L // BM), blocks)
    steps = tl.arange(0, BM)
    first = block.to(tl.int64) * BM
    inside = steps < left_of(S, first)
    A, U = tape_of_steps(TAPE, heads, at, S, 0), tape_of_steps(TAPE, heads, at, S, 1)
    WRITTEN = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 0)
    SEGMENT = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 3)
    segment = load_segment(SEGMENT + first, steps, inside, -1.0, WITH_RESETS)
    keys, values = key_role * OUT + tl.arange(0, OUT), tl.arange(0, BV)
    a = tl.load(A + first + steps, mask=inside, other=-float("inf"))
    written = tl.load(WRITTEN + first + steps, mask=inside, other=0.0).to(tl.float32)
    v = load_tile(V, first, v_step, steps, values, S, DV).to(OPERAND)  # (BM, BV)
    of_state, in_state = state_tile(keys, values, DK, DV)
    dC = tl.load(DC_STATES + of_state, mask=in_state, other=0.0)
    dk = tl.dot(v, tl.trans(dC), input_precision=PRECISION)  # (BM, OUT)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            more = values + tile * BV
            of_state, in_state = state_tile(keys, more, DK, DV)
            v_more = load_tile(V, first, v_step, steps, more, S, DV).to(OPERAND)
            dC = tl.load(DC_STATES + of_state, mask=in_state, other=0.0)
            dk = tl.dot(v_more, tl.trans(dC), dk, input_precision=PRECISION)
    dn = load_dn(PARTS, heads, at, S, NC, chunk, keys, DK, Y_TILES)
    dk = (dk + dn[None, :]) * written[:, None]
    for reader in tl.range(block, chunk_end, num_stages=STAGES):
        start = tl.cast(reader, tl.int64) * BM
        reader_inside = steps < left_of(S, start)
        dh = load_tile(DH, start, dh_step, steps, values, S, DV).to(OPERAND)
        q = load_tile(Q, start, q_step, steps, keys, S, DK).to(OPERAND)
        u = tl.load(U + start + steps, mask=reader_inside, other=float("inf")) - log2_scale
        dscores = tl.dot(v, tl.trans(dh), input_precision=PRECISION)  # (BM, BM), rows write
        if VALUE_TILES > 1:
            for tile in range(1, VALUE_TILES):
                more = values + tile * BV
                v_more = load_tile(V, first, v_step, steps, more, S, DV).to(OPERAND)
                dh_more = load_tile(DH, start, dh_step, steps, more, S, DV).to(OPERAND)
                dscores = tl.dot(v_more, tl.trans(dh_more), dscores, input_precision=PRECISION)
        if NORMALIZE:
            dscores += load_y(PARTS, heads, at, S, start, steps, Y_TILES)[None, :]
        of_readers = load_segment(SEGMENT + start, steps, reader_inside, -2.0, WITH_RESETS)
        dscores *= _chunk_weights(a, u, steps, (reader - block) * BM, segment, of_readers, WITH_RESETS)
        dk = tl.dot(dscores.to(OPERAND), q, dk, input_precision=PRECISION)
    store_tile(DK_OUT, dk, first, dk_step, steps, keys, S, DK)
    k = load_tile(K, first, k_step, steps, keys, S, DK).to(tl.float32)
    K_DK = role_part(PARTS, heads, at, S, NC, 2, key_role, DK, Y_TILES, KEY_ROLES)
    tl.store(K_DK + first + steps, tl.sum(k * dk, 1), mask=inside)


@triton.jit
def _value_role(
    Q,
    K,
    V,
    DH,
    TAPE,
    C_STATES,
    PARTS,
    DC_STATES,
    DV_OUT,
    heads,
    at,
    block,
    value_role,
    q_step,
    k_step,
    v_step,
    dh_step,
    dv_step,
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
    """dv of OUT values, for the program's own steps, which write."""
    KEY_TILES: tl.constexpr = (DK + BK - 1) // BK
    NC, blocks = tl.cdiv(S, L), tl.cdiv(S, BM)
    chunk_end = tl.minimum((block // (L // BM) + 1) * (L // BM), blocks)
    steps = tl.arange(0, BM)
    first = block.to(tl.int64) * BM
    inside = steps < left_of(S, first)
    A, U = tape_of_steps(TAPE, heads, at, S, 0), tape_of_steps(TAPE, heads, at, S, 1)
    WRITTEN = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 0)
    SEGMENT = tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 3)
    segment = load_segment(SEGMENT + first, steps, inside, -1.0, WITH_RESETS)
    keys, values = tl.arange(0, BK), value_role * OUT + tl.arange(0, OUT)
    a = tl.load(A + first + steps, mask=inside, other=-float("inf"))
    written = tl.load(WRITTEN + first + steps, mask=inside, other=0.0).to(tl.float32)
    k = load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)  # (BM, BK)
    of_state, in_state = state_tile(keys, values, DK, DV)
    dC = tl.load(DC_STATES + of_state, mask=in_state, other=0.0)
    dv = tl.dot(k, dC, input_precision=PRECISION)  # (BM, OUT)
    if KEY_TILES > 1:
        for tile in range(1, KEY_TILES):
            more = keys + tile * BK
            of_state, in_state = state_tile(more, values, DK, DV)
            k_more = load_tile(K, first, k_step, steps, more, S, DK).to(OPERAND)
            dC = tl.load(DC_STATES + of_state, mask=in_state, other=0.0)
            dv = tl.dot(k_more, dC, dv, input_precision=PRECISION)
    dv *= written[:, None]
    for reader in tl.range(block, chunk_end, num_stages=STAGES):
        start = tl.cast(reader, tl.int64) * BM
        reader_inside = steps < left_of(S, start)
        q = load_tile(Q, start, q_step, steps, keys, S, DK).to(OPERAND)
        dh = load_tile(DH, start, dh_step, steps, values, S, DV).to(OPERAND)
        u = tl.load(U + start + steps, mask=reader_inside, other=float("inf")) - log2_scale
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BM, BM), rows write
        if KEY_TILES > 1:
            for tile in range(1, KEY_TILES):
                more = keys + tile * BK
                k_more = load_tile(K, first, k_step, steps, more, S, DK).to(OPERAND)
                q_more = load_tile(Q, start, q_step, steps, more, S, DK).to(OPERAND)
                scores = tl.dot(k_more, tl.trans(q_more), scores, input_precision=PRECISION)
        of_readers = load_segment(SEGMENT + start, steps, reader_inside, -2.0, WITH_RESETS)
        scores *= _chunk_weights(a, u, steps, (reader - block) * BM, segment, of_readers, WITH_RESETS)
        dv = tl.dot(scores.to(OPERAND), dh, dv, input_precision=PRECISION)
    store_tile(DV_OUT, dv, first, dv_step, steps, values, S, DV)


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_backward_roles(
    Q,
    K,
    V,
    DH,
    TAPE,
    C_STATES,
    PARTS,
    DC_STATES,
    DQ,
    DK_OUT,
    DV_OUT,
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
    OUT: tl.constexpr,
    L: tl.constexpr,
    Y_TILES: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program BM steps of a head of a row in one role: dq or dk of OUT keys, or dv of OUT values."""
    log2_scale = tl.log2(scale)
    KEY_ROLES: tl.constexpr = (DK + OUT - 1) // OUT
    ROLES: tl.constexpr = 2 * KEY_ROLES + (DV + OUT - 1) // OUT
    role = tl.program_id(0) % ROLES
    block = tl.program_id(0) // ROLES
    blocks = tl.cdiv(S, BM)
    heads = tl.num_programs(0) // ROLES // blocks
    at = (block // blocks).to(tl.int64)  # of (B, NH)
    block = block % blocks
    row, head = at // NH, at % NH
    chunk = (at * tl.cdiv(S, L) + block // (L // BM)) * DK * DV
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    DH += row * S * NH * DV + head * DV
    C_STATES += chunk
    DC_STATES += chunk
    if role < KEY_ROLES:
        DQ += row * S * NH * DK + head * DK
        _query_role(
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
            role,
            q_step,
            k_step,
            v_step,
            NH * DV,
            NH * DK,
            S,
            log2_scale,
            DK,
            DV,
            BK,
            BV,
            BM,
            OUT,
            L,
            Y_TILES,
            WITH_RESETS,
            NORMALIZE,
            OPERAND,
            PRECISION,
            STAGES,
        )
    elif role < 2 * KEY_ROLES:
        DK_OUT += row * S * NH * DK + head * DK
        _key_role(
            Q,
            K,
            V,
            DH,
            TAPE,
            C_STATES,
            PARTS,
            DC_STATES,
            DK_OUT,
            heads,
            at,
            block,
            role - KEY_ROLES,
            q_step,
            k_step,
            v_step,
            NH * DV,
            NH * DK,
            S,
            log2_scale,
            DK,
            DV,
            BK,
            BV,
            BM,
            OUT,
            L,
            Y_TILES,
            WITH_RESETS,
            NORMALIZE,
            OPERAND,
            PRECISION,
            STAGES,
        )
    else:
        DV_OUT += row * S * NH * DV + head * DV
        _value_role(
            Q,
            K,
            V,
            DH,
            TAPE,
            C_STATES,
            PARTS,
            DC_STATES,
            DV_OUT,
            heads,
            at,
            block,
            role - 2 * KEY_ROLES,
            q_step,
            k_step,
            v_step,
            NH * DV,
            NH * DV,
            S,
            log2_scale,
            DK,
            DV,
            BK,
            BV,
            BM,
            OUT,
            L,
            Y_TILES,
            WITH_RESETS,
            NORMALIZE,
            OPERAND,
            PRECISION,
            STAGES,
        )
