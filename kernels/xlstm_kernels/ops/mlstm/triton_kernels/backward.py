"""The mLSTM's Triton kernels backward: the gradients of the states, then of all chunks at once.

Chunks of narrow heads are one program each. Wide heads outgrow its registers: there a program takes BM steps and one of
three roles, the gradient of a tile of queries, of keys or of values; a last kernel sums up what the gates get.

Shapes and letters: shared.py. y is the gradient of the normaliser times the denominator, -sign(l) (dh . h) where
|l| is above the floor. What is a sum over tiles of values or keys is left behind as one part a tile.
"""

import triton
import triton.language as tl

from .shared import (
    CHUNK_NUMBERS,
    left_of,
    load_segments,
    load_tile,
    of_segment_0,
    power,
    sigmoid_of_negative,
    state_tile,
    store_tile,
    sum_of_segment,
    tape_of_chunks,
    tape_of_n,
    tape_of_steps,
    tape_of_steps_apart,
)

# What kernels pass each other is one flat float32 array: y, (value tiles, B, NH, S), the gradients of n after each
# chunk, (value tiles, B, NH, NC, DK); then, of roles, q . dq, its share from the state before the chunk, and k . dk,
# (key roles, B, NH, S) each, and <C, dC> + <n, dn> of what that state hands on, (key tiles, B, NH, NC).


@triton.jit
def _y_part(PARTS, heads, at, S, tile):
    return PARTS + (tile * heads.to(tl.int64) + at) * S


@triton.jit
def _dn_part(PARTS, heads, at, S, NC, tile, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    return PARTS + VALUE_TILES * heads.to(tl.int64) * S + (tile * heads.to(tl.int64) + at) * NC * DK


@triton.jit
def _behind_dn(PARTS, heads, S, NC, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    return PARTS + VALUE_TILES * heads.to(tl.int64) * (S + NC * DK)


@triton.jit
def _role_part(
    PARTS, heads, at, S, NC, number, tile, DK: tl.constexpr, VALUE_TILES: tl.constexpr, KEY_TILES: tl.constexpr
):
    behind = _behind_dn(PARTS, heads, S, NC, DK, VALUE_TILES)
    return behind + ((number * KEY_TILES + tile) * heads.to(tl.int64) + at) * S


@triton.jit
def _leaving_part(PARTS, heads, at, S, NC, tile, DK: tl.constexpr, VALUE_TILES: tl.constexpr, KEY_TILES: tl.constexpr):
    behind = _behind_dn(PARTS, heads, S, NC, DK, VALUE_TILES)
    return behind + 3 * KEY_TILES * heads.to(tl.int64) * S + (tile * heads.to(tl.int64) + at) * NC


@triton.jit
def _load_y(PARTS, heads, at, S, first, steps, VALUE_TILES: tl.constexpr):
    inside = steps < left_of(S, first)
    y = tl.load(_y_part(PARTS, heads, at, S, 0) + first + steps, mask=inside, other=0.0)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            y += tl.load(_y_part(PARTS, heads, at, S, tile) + first + steps, mask=inside, other=0.0)
    return y


@triton.jit
def _load_dn(PARTS, heads, at, S, NC, chunk, keys, DK: tl.constexpr, VALUE_TILES: tl.constexpr):
    """The gradient of n after a chunk."""
    of_keys = chunk * DK + keys
    dn = tl.load(_dn_part(PARTS, heads, at, S, NC, 0, DK, VALUE_TILES) + of_keys, mask=keys < DK, other=0.0)
    if VALUE_TILES > 1:
        for tile in range(1, VALUE_TILES):
            part = _dn_part(PARTS, heads, at, S, NC, tile, DK, VALUE_TILES)
            dn += tl.load(part + of_keys, mask=keys < DK, other=0.0)
    return dn


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_backward_states(
    Q,
    RESETS,
    H,
    DH,
    DC_LAST,
    DN_LAST,
    TAPE,
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
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program a (BK, BV) tile of the memory of a head of a row, backwards through all chunks.

    The gradients of n are linear in y: each tile of values has its part of both. ``LAST``: the loss reads the last
    state.
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
    OF_CHUNK = tape_of_chunks(TAPE, heads, at, S, NC)
    Y = _y_part(PARTS, heads, at, S, value_tile)
    DN_STATES = _dn_part(PARTS, heads, at, S, NC, value_tile, DK, VALUE_TILES)
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
    if not FRESH:
        tl.store(DC_FIRST + at * DK * DV + of_state, dC, mask=in_state)
        tl.store(DN_FIRST + (value_tile * heads.to(tl.int64) + at) * DK + keys, dn, mask=keys < DK)


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_backward_chunks(
    Q,
    K,
    V,
    F,
    RESETS,
    DH,
    TAPE,
    C_STATES,
    PARTS,
    DC_STATES,
    DQ,
    DK_OUT,
    DV_OUT,
    DI,
    DF,
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
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program a chunk of a head of a row, all in parallel, from the state before it and the gradient after it."""
    log2_scale = tl.log2(scale)
    VALUE_TILES: tl.constexpr = (DV + BV - 1) // BV
    NC = tl.cdiv(S, L)
    heads = tl.num_programs(0) // NC
    at, chunk = (tl.program_id(0) // NC).to(tl.int64), (tl.program_id(0) % NC).to(tl.int64)
    row, head = at // NH, at % NH
    steps, keys = tl.arange(0, L), tl.arange(0, BK)
    first = chunk * L
    inside = steps < left_of(S, first)
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    C_STATES += (at * NC + chunk) * DK * DV
    DC_STATES += (at * NC + chunk) * DK * DV
    keys_at, values_at = row * S * NH * DK + head * DK, row * S * NH * DV + head * DV
    q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
    k = load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)
    a = tl.load(tape_of_steps(TAPE, heads, at, S, 0) + first + steps, mask=inside, other=-float("inf"))  # (L,)
    u = tl.load(tape_of_steps(TAPE, heads, at, S, 1) + first + steps, mask=inside, other=float("inf")) - log2_scale
    OF_CHUNK = tape_of_chunks(TAPE, heads, at, S, NC) + chunk * CHUNK_NUMBERS
    m, closing, decay = tl.load(OF_CHUNK), tl.load(OF_CHUNK + 1), tl.load(OF_CHUNK + 2).to(tl.float32)
    segment = load_segments(RESETS, row * S + first, steps, inside, 0, WITH_RESETS)

    # Rows are the step s that writes, columns the step t that reads.
    visible, to_end = steps[:, None] <= steps[None, :], a
    if WITH_RESETS:
        visible = visible & (segment[:, None] == segment[None, :])
        to_end = tl.where(segment == tl.max(segment, 0), a, -float("inf"))
    weights = tl.where(visible, power(a[:, None] - u[None, :]), 0.0)  # (L, L)
    written = power(to_end + closing)  # (L,)
    reads = power(of_segment_0(m, segment, WITH_RESETS) - u)

    scores = (tl.dot(k, tl.trans(q), input_precision=PRECISION) * weights).to(OPERAND)  # (L, L)
    dscores = tl.zeros((L, L), tl.float32)
    dq = tl.zeros((L, BK), tl.float32)
    dk = tl.zeros((L, BK), tl.float32)
    leaving = tl.zeros((BK,), tl.float32)  # <C, dC> of what the state before the chunk hands on
    for tile in tl.range(VALUE_TILES, num_stages=1):
        values = tile * BV + tl.arange(0, BV)
        of_state, in_state = state_tile(keys, values, DK, DV)
        v = load_tile(V, first, v_step, steps, values, S, DV).to(OPERAND)  # (L, BV)
        dh = load_tile(DH + values_at, first, NH * DV, steps, values, S, DV).to(OPERAND)
        C = tl.load(C_STATES + of_state, mask=in_state, other=0.0)  # (BK, BV)
        dC = tl.load(DC_STATES + of_state, mask=in_state, other=0.0)
        dscores = tl.dot(v, tl.trans(dh), dscores, input_precision=PRECISION)
        dk = tl.dot(v, tl.trans(dC), dk, input_precision=PRECISION)
        dq = tl.dot(dh, tl.trans(C), dq, input_precision=PRECISION)
        dv = tl.dot(k, dC, input_precision=PRECISION) * written[:, None]
        dv = tl.dot(scores, dh, dv, input_precision=PRECISION)
        store_tile(DV_OUT + values_at, dv, first, NH * DV, steps, values, S, DV)
        leaving += tl.sum(C.to(tl.float32) * dC.to(tl.float32), 1)

    n = tl.load(tape_of_n(TAPE, heads, at, S, NC, DK) + chunk * DK + keys, mask=keys < DK, other=0.0).to(tl.float32)
    dn = _load_dn(PARTS, heads, at, S, NC, chunk, keys, DK, VALUE_TILES)
    dk += dn[None, :]
    if NORMALIZE:
        y = _load_y(PARTS, heads, at, S, first, steps, VALUE_TILES)
        dscores += y[None, :]
        dq += y[:, None] * n[None, :]
    dscores = (dscores * weights).to(OPERAND)
    dk = tl.dot(dscores, q, dk * written[:, None], input_precision=PRECISION)
    store_tile(DK_OUT + keys_at, dk, first, NH * DK, steps, keys, S, DK)
    di = tl.sum(k.to(tl.float32) * dk, 1)  # (L,)

    # log f of step r weighs all that crosses r. At the chunk's start that is what comes from the state before it; each
    # step then takes away what it reads and adds what it writes. Closed in each chunk, it does not lose with S.
    dq = dq * reads[:, None]
    entering = decay * tl.sum(leaving + n * dn, 0) + tl.sum(tl.sum(q.to(tl.float32) * dq, 1), 0)
    dq = tl.dot(tl.trans(dscores), k, dq, input_precision=PRECISION)
    store_tile(DQ + keys_at, dq, first, NH * DK, steps, keys, S, DK)
    taken = tl.sum(q.to(tl.float32) * dq, 1) - di  # (L,)
    _store_gates(
        F, DI, DF, row, head, first + steps, S, NH, g_batch, g_step, g_head, di, taken, entering, segment, WITH_RESETS
    )


@triton.jit
def _store_gates(
    F, DI, DF, row, head, t, S, NH, g_batch, g_step, g_head, di, taken, entering, segment, WITH_RESETS: tl.constexpr
):
    """Gradients of the gates' pre-activations, from what enters the chunk and what each of its steps takes away."""
    if WITH_RESETS:
        _, so_far = tl.associative_scan((segment, taken), 0, sum_of_segment)
        crossing = tl.where(segment == 0, entering, 0.0) - (so_far - taken)
    else:
        crossing = entering - (tl.cumsum(taken, 0) - taken)
    inside = t < S
    f = tl.load(F + row * g_batch + t * g_step + head * g_head, mask=inside, other=0.0).to(tl.float32)
    at_gate = (row * S + t) * NH + head
    tl.store(DI + at_gate, di.to(DI.dtype.element_ty), mask=inside)
    tl.store(DF + at_gate, (crossing * sigmoid_of_negative(f)).to(DF.dtype.element_ty), mask=inside)


@triton.jit
def _chunk_weights(a, u, steps, ahead, segment_s, segment_t, WITH_RESETS: tl.constexpr):
    """Of step s (rows) in what step t (columns), of a tile ``ahead`` steps later, reads."""
    visible = steps[:, None] <= steps[None, :] + ahead
    if WITH_RESETS:
        visible = visible & (segment_s[:, None] == segment_t[None, :])
    return tl.where(visible, power(a[:, None] - u[None, :]), 0.0)


@triton.jit
def _load_segment(SEGMENT, steps, inside, outside, WITH_RESETS: tl.constexpr):
    segment = tl.zeros(steps.shape, tl.int32)
    if WITH_RESETS:
        segment = tl.load(SEGMENT + steps, mask=inside, other=outside).to(tl.int32)
    return segment


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
    segment = _load_segment(SEGMENT + first, steps, inside, -1.0, WITH_RESETS)
    keys, values = key_role * OUT + tl.arange(0, OUT), tl.arange(0, BV)
    u = tl.load(U + first + steps, mask=inside, other=float("inf")) - log2_scale
    OF_CHUNK = tape_of_chunks(TAPE, heads, at, S, NC) + chunk * CHUNK_NUMBERS
    m = tl.load(OF_CHUNK)
    n = tl.load(tape_of_n(TAPE, heads, at, S, NC, DK) + chunk * DK + keys, mask=keys < DK, other=0.0)
    y = tl.zeros((BM,), tl.float32)
    if NORMALIZE:
        y = _load_y(PARTS, heads, at, S, first, steps, Y_TILES)
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
        leaving = n.to(tl.float32) * _load_dn(PARTS, heads, at, S, NC, chunk, keys, DK, Y_TILES)
        for tile in range(VALUE_TILES):
            of_state, in_state = state_tile(keys, values + tile * BV, DK, DV)
            memory = tl.load(C_STATES + of_state, mask=in_state, other=0.0).to(tl.float32)
            leaving += tl.sum(memory * tl.load(DC_STATES + of_state, mask=in_state, other=0.0).to(tl.float32), 1)
        decay = tl.load(OF_CHUNK + 2).to(tl.float32)
        LEAVING = _leaving_part(PARTS, heads, at, S, NC, key_role, DK, Y_TILES, KEY_ROLES)
        tl.store(LEAVING + chunk, decay * tl.sum(leaving, 0))
    reads = power(of_segment_0(m, segment, WITH_RESETS) - u)
    dq = (dq + y[:, None] * n.to(tl.float32)[None, :]) * reads[:, None]
    own_q = load_tile(Q, first, q_step, steps, keys, S, DK).to(tl.float32)
    FROM_STATE = _role_part(PARTS, heads, at, S, NC, 1, key_role, DK, Y_TILES, KEY_ROLES)
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
                segment[:, None] == _load_segment(SEGMENT + start, steps, source_inside, -2.0, WITH_RESETS)[None, :]
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
    Q_DQ = _role_part(PARTS, heads, at, S, NC, 0, key_role, DK, Y_TILES, KEY_ROLES)
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
    segment = _load_segment(SEGMENT + first, steps, inside, -1.0, WITH_RESETS)
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
    dn = _load_dn(PARTS, heads, at, S, NC, chunk, keys, DK, Y_TILES)
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
            dscores += _load_y(PARTS, heads, at, S, start, steps, Y_TILES)[None, :]
        of_readers = _load_segment(SEGMENT + start, steps, reader_inside, -2.0, WITH_RESETS)
        dscores *= _chunk_weights(a, u, steps, (reader - block) * BM, segment, of_readers, WITH_RESETS)
        dk = tl.dot(dscores.to(OPERAND), q, dk, input_precision=PRECISION)
    store_tile(DK_OUT, dk, first, dk_step, steps, keys, S, DK)
    k = load_tile(K, first, k_step, steps, keys, S, DK).to(tl.float32)
    K_DK = _role_part(PARTS, heads, at, S, NC, 2, key_role, DK, Y_TILES, KEY_ROLES)
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
    segment = _load_segment(SEGMENT + first, steps, inside, -1.0, WITH_RESETS)
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
        of_readers = _load_segment(SEGMENT + start, steps, reader_inside, -2.0, WITH_RESETS)
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


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_backward_gates(
    F,
    TAPE,
    PARTS,
    DI,
    DF,
    g_batch,
    g_step,
    g_head,
    S,
    NH,
    DK: tl.constexpr,
    KEY_ROLES: tl.constexpr,
    Y_TILES: tl.constexpr,
    L: tl.constexpr,
    WITH_RESETS: tl.constexpr,
):
    """One program a chunk of a head of a row: the gates' gradients, from the parts that the roles left."""
    NC = tl.cdiv(S, L)
    heads = tl.num_programs(0) // NC
    at, chunk = (tl.program_id(0) // NC).to(tl.int64), (tl.program_id(0) % NC).to(tl.int64)
    row, head = at // NH, at % NH
    t = chunk * L + tl.arange(0, L)
    inside = t < S
    taken, di = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    entering = tl.sum(tl.zeros((L,), tl.float32), 0)
    for tile in range(KEY_ROLES):
        q_dq = _role_part(PARTS, heads, at, S, NC, 0, tile, DK, Y_TILES, KEY_ROLES)
        from_state = _role_part(PARTS, heads, at, S, NC, 1, tile, DK, Y_TILES, KEY_ROLES)
        k_dk = _role_part(PARTS, heads, at, S, NC, 2, tile, DK, Y_TILES, KEY_ROLES)
        taken += tl.load(q_dq + t, mask=inside, other=0.0)
        di += tl.load(k_dk + t, mask=inside, other=0.0)
        entering += tl.sum(tl.load(from_state + t, mask=inside, other=0.0), 0)
        entering += tl.load(_leaving_part(PARTS, heads, at, S, NC, tile, DK, Y_TILES, KEY_ROLES) + chunk)
    segment = _load_segment(tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 3), t, inside, -1.0, WITH_RESETS)
    _store_gates(
        F, DI, DF, row, head, t, S, NH, g_batch, g_step, g_head, di, taken - di, entering, segment, WITH_RESETS
    )
