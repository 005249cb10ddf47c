"""The mLSTM's Triton kernels backward for all chunks at once, and for the gates after roles. Letters: shared.py."""

import triton
import triton.language as tl

from .parts import AT_FROM_STATE, AT_K_DK, AT_Q_DQ, ROLE_NUMBERS, load_dn, load_entering, load_y, role_part
from .shared import left_of, load_tile, of_segment_0, power, state_tile, store_tile, sum_of_segment
from .tape import (
    AT_A,
    AT_CLOSING,
    AT_FORGETS,
    AT_M_BEFORE,
    AT_U,
    load_of_keys,
    load_segment,
    of_chunk,
    of_n,
    record_of,
)


@triton.jit(do_not_specialize=["S", "NH", "EACH"])
def mlstm_backward_chunks(
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
    for number in tl.range(part * EACH, tl.minimum((part + 1) * EACH, NC), num_stages=STAGES):
        # Widened after the product, which might overflow for all that the compiler knows: else it would keep an address
        # and a step of each array, and the registers that these take would come back from the stack behind the loads.
        first = tl.cast(number * L, tl.int64)
        chunk = tl.cast(number, tl.int64)
        q = load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        k = load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)
        CHUNK, chunks = record_of(TAPE, at * NC + chunk, L, DK), heads.to(tl.int64) * NC
        a, u = tl.load(CHUNK + AT_A * L + steps), tl.load(CHUNK + AT_U * L + steps) - log2_scale  # (L,)
        m, closing = tl.load(of_chunk(CHUNK, AT_M_BEFORE, L, DK)), tl.load(of_chunk(CHUNK, AT_CLOSING, L, DK))
        segment = load_segment(CHUNK, steps, L, WITH_RESETS)

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
            y = load_y(PARTS, at * NC + chunk, chunks, steps, L, DK, VALUE_TILES)
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

        n = load_of_keys(of_n(CHUNK, L), keys, DK)
        dn = load_dn(PARTS, at * NC + chunk, chunks, keys, L, DK, VALUE_TILES)
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
        entering = load_entering(PARTS, at * NC + chunk, chunks, L, DK, VALUE_TILES)
        forgets = tl.load(CHUNK + AT_FORGETS * L + steps)
        inside = steps < left_of(S, first)
        at_gate = first * NH + (row * S * NH + head) + steps * NH
        _store_gates(DI + at_gate, DF + at_gate, inside, di, taken, entering, forgets, segment, WITH_RESETS)


@triton.jit
def _store_gates(DI, DF, inside, di, taken, entering, forgets, segment, WITH_RESETS: tl.constexpr):
    """Gradients of the gates' pre-activations, from what enters the chunk and what each of its steps takes away."""
    if WITH_RESETS:
        _, so_far = tl.associative_scan((segment, taken), 0, sum_of_segment)
        crossing = tl.where(segment == 0, entering, 0.0) - (so_far - taken)
    else:
        crossing = entering - (tl.cumsum(taken, 0) - taken)
    tl.store(DI, di.to(DI.dtype.element_ty), mask=inside)
    tl.store(DF, (crossing * forgets.to(tl.float32)).to(DF.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_backward_gates(
    TAPE,
    PARTS,
    DI,
    DF,
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
    number, chunks = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)  # of (B, NH, NC)
    at, first = number // NC, number % NC * L
    row, head = at // NH, at % NH
    steps = tl.arange(0, L)
    inside = steps < left_of(S, first)
    taken, di = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    entering = tl.sum(tl.zeros((L,), tl.float32), 0)
    for tile in range(KEY_ROLES):
        PART = role_part(PARTS, tile, number, chunks, L, DK, Y_TILES)
        taken += tl.load(PART + AT_Q_DQ * L + steps, mask=inside, other=0.0)
        di += tl.load(PART + AT_K_DK * L + steps, mask=inside, other=0.0)
        entering += tl.sum(tl.load(PART + AT_FROM_STATE * L + steps, mask=inside, other=0.0), 0)
        entering += tl.load(PART + ROLE_NUMBERS * L)
    CHUNK = record_of(TAPE, number, L, DK)
    segment = load_segment(CHUNK, steps, L, WITH_RESETS)
    forgets = tl.load(CHUNK + AT_FORGETS * L + steps)
    at_gate = (row * S + first + steps) * NH + head
    _store_gates(DI + at_gate, DF + at_gate, inside, di, taken - di, entering, forgets, segment, WITH_RESETS)
