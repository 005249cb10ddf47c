"""The mLSTM's Triton kernels backward: gradients of the states, then of all chunks at once; of the gates after roles.

Letters: shared.py. y is the gradient of the normaliser times the denominator, -sign(l) (dh . h) where |l| is above the
floor.
"""

import triton
import triton.language as tl

from .parts import (
    dn_part,
    entering_part,
    leaving_part,
    load_dn,
    load_entering,
    load_segment,
    load_y,
    role_part,
    y_part,
)
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


@triton.jit(do_not_specialize=["S", "NH", "EACH", "g_batch", "g_step", "g_head"])
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
    EACH,  # chunks that a program goes through
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
    STAGES: tl.constexpr,
):
    """One program some chunks of a head of a row, each from the state before it and the gradient after it.

    The chunks do not wait for each other: a program has several so that the next one's loads are under way meanwhile.
    """
    log2_scale = tl.log2(scale)
    VALUE_TILES: tl.constexpr = (DV + BV - 1) // BV
    NC = tl.cdiv(S, L)
    parts = tl.cdiv(NC, EACH)
    heads = tl.num_programs(0) // parts
    at, part = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    row, head = at // NH, at % NH
    steps, keys = tl.arange(0, L), tl.arange(0, BK)
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    C_STATES += at * NC * DK * DV
    DC_STATES += at * NC * DK * DV
    keys_at, values_at = row * S * NH * DK + head * DK, row * S * NH * DV + head * DV
    OF_CHUNK = tape_of_chunks(TAPE, heads, at, S, NC)
    for number in tl.range(part * EACH, tl.minimum((part + 1) * EACH, NC), num_stages=STAGES):
        chunk = tl.cast(number, tl.int64)
        first = chunk * L
        inside = steps < left_of(S, first)
        q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        k = load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)
        a = tl.load(tape_of_steps(TAPE, heads, at, S, 0) + first + steps, mask=inside, other=-float("inf"))  # (L,)
        u = tl.load(tape_of_steps(TAPE, heads, at, S, 1) + first + steps, mask=inside, other=float("inf")) - log2_scale
        m, closing = tl.load(OF_CHUNK + chunk * CHUNK_NUMBERS), tl.load(OF_CHUNK + chunk * CHUNK_NUMBERS + 1)
        segment = load_segments(RESETS, row * S + first, steps, inside, 0, WITH_RESETS)

        # Rows are the step s that writes, columns the step t that reads. The weights go first, as they fill registers.
        visible, to_end = steps[:, None] <= steps[None, :], a
        if WITH_RESETS:
            visible = visible & (segment[:, None] == segment[None, :])
            to_end = tl.where(segment == tl.max(segment, 0), a, -float("inf"))
        dscores = tl.zeros((L, L), tl.float32)
        for tile in tl.range(VALUE_TILES, num_stages=1):
            values = tile * BV + tl.arange(0, BV)
            v = load_tile(V, first, v_step, steps, values, S, DV).to(OPERAND)  # (L, BV)
            dh = load_tile(DH + values_at, first, NH * DV, steps, values, S, DV).to(OPERAND)
            dscores = tl.dot(v, tl.trans(dh), dscores, input_precision=PRECISION)
        if NORMALIZE:
            y = load_y(PARTS, heads, at, S, first, steps, VALUE_TILES)
            dscores += y[None, :]
        weights = tl.where(visible, power(a[:, None] - u[None, :]), 0.0)
        dscores = (dscores * weights).to(OPERAND)
        scores = (tl.dot(k, tl.trans(q), input_precision=PRECISION) * weights).to(OPERAND)

        written = power(to_end + closing)  # (L,)
        reads = power(of_segment_0(m, segment, WITH_RESETS) - u)
        dq = tl.zeros((L, BK), tl.float32)
        dk = tl.zeros((L, BK), tl.float32)
        for tile in tl.range(VALUE_TILES, num_stages=1):
            values = tile * BV + tl.arange(0, BV)
            of_state, in_state = state_tile(keys, values, DK, DV)
            v = load_tile(V, first, v_step, steps, values, S, DV).to(OPERAND)
            dh = load_tile(DH + values_at, first, NH * DV, steps, values, S, DV).to(OPERAND)
            C = tl.load(C_STATES + chunk * DK * DV + of_state, mask=in_state, other=0.0)  # (BK, BV)
            dC = tl.load(DC_STATES + chunk * DK * DV + of_state, mask=in_state, other=0.0)
            dv = tl.dot(k, dC, input_precision=PRECISION) * written[:, None]
            dv = tl.dot(scores, dh, dv, input_precision=PRECISION)
            store_tile(DV_OUT + values_at, dv, first, NH * DV, steps, values, S, DV)
            dk = tl.dot(v, tl.trans(dC), dk, input_precision=PRECISION)
            dq = tl.dot(dh, tl.trans(C), dq, input_precision=PRECISION)

        n = tl.load(tape_of_n(TAPE, heads, at, S, NC, DK) + chunk * DK + keys, mask=keys < DK, other=0.0).to(tl.float32)
        dn = load_dn(PARTS, heads, at, S, NC, chunk, keys, DK, VALUE_TILES)
        dk = tl.dot(dscores, q, (dk + dn[None, :]) * written[:, None], input_precision=PRECISION)
        store_tile(DK_OUT + keys_at, dk, first, NH * DK, steps, keys, S, DK)
        di = tl.sum(k.to(tl.float32) * dk, 1)  # (L,)
        if NORMALIZE:
            dq += y[:, None] * n[None, :]
        dq = tl.dot(tl.trans(dscores), k, dq * reads[:, None], input_precision=PRECISION)
        store_tile(DQ + keys_at, dq, first, NH * DK, steps, keys, S, DK)

        # log f of step r weighs all that crosses r. At the chunk's start that is what comes from the state before it;
        # each step then takes away what it reads and adds what it writes. Closed in each chunk, it loses nothing with
        # S.
        taken = tl.sum(q.to(tl.float32) * dq, 1) - di  # (L,)
        entering = load_entering(PARTS, heads, at, S, NC, chunk, DK, VALUE_TILES)
        t = first + steps
        _store_gates(F, DI, DF, row, head, t, S, NH, g_batch, g_step, g_head, di, taken, entering, segment, WITH_RESETS)


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


@triton.jit(do_not_specialize=["S", "NH", "g_batch", "g_step", "g_head"])
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
        q_dq = role_part(PARTS, heads, at, S, NC, 0, tile, DK, Y_TILES, KEY_ROLES)
        from_state = role_part(PARTS, heads, at, S, NC, 1, tile, DK, Y_TILES, KEY_ROLES)
        k_dk = role_part(PARTS, heads, at, S, NC, 2, tile, DK, Y_TILES, KEY_ROLES)
        taken += tl.load(q_dq + t, mask=inside, other=0.0)
        di += tl.load(k_dk + t, mask=inside, other=0.0)
        entering += tl.sum(tl.load(from_state + t, mask=inside, other=0.0), 0)
        entering += tl.load(leaving_part(PARTS, heads, at, S, NC, tile, DK, Y_TILES, KEY_ROLES) + chunk)
    segment = load_segment(tape_of_steps_apart(TAPE, heads, at, S, NC, DK, 3), t, inside, -1.0, WITH_RESETS)
    _store_gates(
        F, DI, DF, row, head, t, S, NH, g_batch, g_step, g_head, di, taken - di, entering, segment, WITH_RESETS
    )
