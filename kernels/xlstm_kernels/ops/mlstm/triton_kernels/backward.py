"""The mLSTM's Triton kernels backward for all chunks at once, and for the gates after roles. Letters: shared.py."""

import triton
import triton.language as tl

from .parts import leaving_part, load_dn, load_entering, load_segment, load_y, role_part
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
