"""The mLSTM's Triton kernels: one over a sequence forward; backward one over the states, one over all chunks at once.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, L chunk size, BK / BV their padded tiles.
Logarithms are to base 2, in LOGS: float64 where float32 operands ask for more than float32 differences of long sums.

What a step t reads of step s of its chunk has weight exp2(a_s - M_t), of the state before the chunk exp2(m - M_t), with
b the sum of log f within the chunk, a = i - b, and M_t the maximum of m and a up to t. The sum b_t itself cancels in
all but the floor exp2(-b_t - M_t), the paper's 1. Backward, den_t = max(|l_t|, floor) + epsilon joins the exponent:
with U_t = M_t + log2 den_t all weights are exp2(a_s - U_t). The derivation is in kernels/README.md.
"""

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-6)  # as in constants.py, whose plain numbers kernels cannot read
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.0e38)  # subtracted where nothing was ever written: -inf less -inf would be NaN


@triton.jit
def _largest(x, y):
    return tl.maximum(x, y)


@triton.jit
def _largest_of_segment(segment_x, x, segment_y, y):
    return segment_y, tl.where(segment_x == segment_y, tl.maximum(x, y), y)


@triton.jit
def _sum_of_segment(segment_x, x, segment_y, y):
    return segment_y, tl.where(segment_x == segment_y, x + y, y)


@triton.jit
def _power(exponent):
    return tl.exp2(exponent.to(tl.float32))


@triton.jit
def _segments(RESETS, row, t, S, WITH_RESETS: tl.constexpr):
    """The number of resets in the chunk up to each step: two steps see each other only where it is the same."""
    if WITH_RESETS:
        reset = tl.load(RESETS + row * S + t, mask=t < S, other=0)
        segment = tl.cumsum((reset != 0).to(tl.int32), 0)
    else:
        segment = tl.zeros_like(t)
    return segment


@triton.jit
def _of_segment_0(x, segment, WITH_RESETS: tl.constexpr):
    """A logarithm of the state before the chunk, which a reset hides from the steps (or the state) after it."""
    if WITH_RESETS:
        x = tl.where(segment == 0, x, -float("inf"))
    return x


@triton.jit
def _load_tile(ROWS, first, stride, rows, columns, S, width):
    """A (rows, columns) tile of a (S, width) matrix from row ``first`` on; zero outside of it."""
    pointers = ROWS + first * stride + rows[:, None] * stride + columns[None, :]
    return tl.load(pointers, mask=(first + rows < S)[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def _store_tile(ROWS, x, first, stride, rows, columns, S, width):
    pointers = ROWS + first * stride + rows[:, None] * stride + columns[None, :]
    inside = (first + rows < S)[:, None] & (columns < width)[None, :]
    tl.store(pointers, x.to(ROWS.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["S"])
def mlstm_forward(
    Q,
    K,
    V,
    I,  # noqa: E741
    LOGF,
    RESETS,
    C_FIRST,
    N_FIRST,
    M_FIRST,
    H,
    C_LAST,
    N_LAST,
    M_LAST,
    A,
    U,
    SLOPE,
    SCALES,
    C_STATES,
    N_STATES,
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
    DK,
    DV,
    scale,
    BK: tl.constexpr,
    BV: tl.constexpr,
    TILES: tl.constexpr,
    L: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RECORD: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    LOGS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program a value tile of a head of a row: the chunks one after the other, their state in registers."""
    tile = tl.program_id(0) % TILES
    at = (tl.program_id(0) // TILES).to(tl.int64)  # of (B, NH)
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    steps, keys, values = tl.arange(0, L), tl.arange(0, BK), tile * BV + tl.arange(0, BV)
    causal = steps[:, None] >= steps[None, :]
    of_state = keys[:, None] * DV + values[None, :]
    in_state = (keys < DK)[:, None] & (values < DV)[None, :]
    leads = tile == 0  # writes what does not depend on the values
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    H += row * S * NH * DV + head * DV
    I += row * S * NH + head  # noqa: E741
    LOGF += row * S * NH + head

    C = tl.load(C_FIRST + at * DK * DV + of_state, mask=in_state, other=0.0)  # (BK, BV)
    n = tl.load(N_FIRST + at * DK + keys, mask=keys < DK, other=0.0)  # (BK,)
    m_natural = tl.load(M_FIRST + at)
    for chunk in tl.range(0, NC, num_stages=STAGES):
        first = tl.cast(chunk, tl.int64) * L
        t = first + steps
        inside = t < S
        q = _load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        k = _load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)
        v = _load_tile(V, first, v_step, steps, values, S, DV).to(OPERAND)  # (L, BV)
        i = tl.load(I + t * NH, mask=inside, other=-float("inf")).to(LOGS) * LOG2E  # (L,)
        logf = tl.load(LOGF + t * NH, mask=inside, other=0.0).to(LOGS) * LOG2E
        segment = _segments(RESETS, row, t, S, WITH_RESETS)
        m = m_natural.to(LOGS) * LOG2E
        at_chunk = at * NC + chunk
        if RECORD:
            tl.store(C_STATES + at_chunk * DK * DV + of_state, C.to(C_STATES.dtype.element_ty), mask=in_state)
            tl.store(N_STATES + at_chunk * DK + keys, n, mask=(keys < DK) & leads)

        b = tl.cumsum(logf, 0)
        a = i - b
        visible, to_end, last_segment = causal, a, 0
        if WITH_RESETS:
            last_segment = tl.max(segment, 0)
            visible = causal & (segment[:, None] == segment[None, :])
            to_end = tl.where(segment == last_segment, a, -float("inf"))
            _, M = tl.associative_scan((segment, a), 0, _largest_of_segment)
        else:
            M = tl.associative_scan(a, 0, _largest)
        from_state = _of_segment_0(m, segment, WITH_RESETS)
        M = tl.maximum(tl.maximum(from_state, M), LOWEST)  # (L,)

        weights = tl.where(visible, _power(a[None, :] - M[:, None]), 0.0) * scale  # (L, L)
        reads = _power(from_state - M) * scale  # (L,)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * weights
        numerator = tl.dot(q, C.to(OPERAND), input_precision=PRECISION) * reads[:, None]  # (L, BV)
        numerator = tl.dot(scores.to(OPERAND), v, numerator, input_precision=PRECISION)
        floor = _power(-(b + M))
        if NORMALIZE:
            normaliser = tl.sum(scores, 1) + reads * tl.sum(q.to(tl.float32) * n[None, :], 1)
            denominator = tl.maximum(tl.abs(normaliser), floor) + EPSILON
        else:
            denominator = floor
        _store_tile(H, numerator / denominator[:, None], first, NH * DV, steps, values, S, DV)

        # The state's unit is exp(m) of a rounded m: what rounding takes from m goes into the weights.
        forgotten = tl.sum(logf, 0)
        kept = _of_segment_0(m, last_segment, WITH_RESETS)
        largest = tl.maximum(kept, tl.max(to_end, 0))
        m_natural = ((forgotten + largest) * LN2).to(tl.float32)
        shift = tl.where(largest == -float("inf"), 0.0, forgotten - m_natural.to(LOGS) * LOG2E)

        if RECORD:
            tl.store(SCALES + 2 * at_chunk, m, mask=leads)
            tl.store(SCALES + 2 * at_chunk + 1, shift, mask=leads)
            tl.store(A + at * S + t, a, mask=inside & leads)
            if NORMALIZE:
                slope = tl.where(normaliser > 0, -1.0, 1.0)  # of the denominator, times -1
                tl.store(SLOPE + at * S + t, tl.where(tl.abs(normaliser) > floor, slope, 0.0), mask=inside & leads)
                tl.store(U + at * S + t, M + tl.log2(denominator), mask=inside & leads)
            else:
                tl.store(U + at * S + t, -b, mask=inside & leads)

        written = _power(to_end + shift)  # (L,)
        decay = _power(kept + shift)
        written_v = (v.to(tl.float32) * written[:, None]).to(OPERAND)
        C = tl.dot(tl.trans(k), written_v, C * decay, input_precision=PRECISION)
        n = n * decay + tl.sum(k.to(tl.float32) * written[:, None], 0)

    tl.store(C_LAST + at * DK * DV + of_state, C, mask=in_state)
    tl.store(N_LAST + at * DK + keys, n, mask=(keys < DK) & leads)
    tl.store(M_LAST + at, m_natural, mask=leads)


@triton.jit(do_not_specialize=["S"])
def mlstm_backward_states(
    Q,
    RESETS,
    H,
    DH,
    U,
    SLOPE,
    SCALES,
    DC_LAST,
    DN_LAST,
    Y,
    DC_STATES,
    DN_STATES,
    DC_FIRST,
    DN_FIRST,
    q_batch,
    q_step,
    q_head,
    S,
    NH,
    DK,
    DV,
    scale,
    BK: tl.constexpr,
    BV: tl.constexpr,
    TILES: tl.constexpr,
    L: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program a value tile of a head of a row, backwards: the gradients of the states after each chunk, and y.

    y is the gradient of the normaliser times the denominator, -sign(l) (dh . h) where |l| is above the floor.
    """
    tile = tl.program_id(0) % TILES
    at = (tl.program_id(0) // TILES).to(tl.int64)  # of (B, NH)
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    steps, keys, values = tl.arange(0, L), tl.arange(0, BK), tile * BV + tl.arange(0, BV)
    of_state = keys[:, None] * DV + values[None, :]
    in_state = (keys < DK)[:, None] & (values < DV)[None, :]
    leads = tile == 0
    Q += row * q_batch + head * q_head
    H += row * S * NH * DV + head * DV
    DH += row * S * NH * DV + head * DV

    dC = tl.load(DC_LAST + at * DK * DV + of_state, mask=in_state, other=0.0)  # (BK, BV)
    dn = tl.load(DN_LAST + at * DK + keys, mask=keys < DK, other=0.0)  # (BK,)
    for back in tl.range(0, NC, num_stages=STAGES):
        chunk = NC - 1 - back
        at_chunk = at * NC + chunk
        first = tl.cast(chunk, tl.int64) * L
        t = first + steps
        inside = t < S
        q = _load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
        dh = _load_tile(DH, first, NH * DV, steps, values, S, DV).to(tl.float32)  # (L, BV)
        u = tl.load(U + at * S + t, mask=inside, other=float("inf"))  # (L,)
        m = tl.load(SCALES + 2 * at_chunk)
        shift = tl.load(SCALES + 2 * at_chunk + 1)
        segment = _segments(RESETS, row, t, S, WITH_RESETS)
        last_segment = 0
        if WITH_RESETS:
            last_segment = tl.max(segment, 0)
        tl.store(DC_STATES + at_chunk * DK * DV + of_state, dC.to(DC_STATES.dtype.element_ty), mask=in_state)

        reads = _power(_of_segment_0(m, segment, WITH_RESETS) - u) * scale  # (L,)
        decay = _power(_of_segment_0(m, last_segment, WITH_RESETS) + shift)
        dC = tl.dot(tl.trans(q), (dh * reads[:, None]).to(OPERAND), dC * decay, input_precision=PRECISION)
        if NORMALIZE:
            slope = tl.load(SLOPE + at * S + t, mask=inside & leads, other=0.0)
            width = tl.where(leads, DV, 0)  # the other programs read nothing here
            h = _load_tile(H, first, NH * DV, steps, values, S, width).to(tl.float32)
            y = tl.sum(dh * h, 1)
            if TILES > 1:
                for other in range(1, tl.where(leads, TILES, 1)):
                    columns = other * BV + tl.arange(0, BV)
                    h = _load_tile(H, first, NH * DV, steps, columns, S, DV).to(tl.float32)
                    y += tl.sum(h * _load_tile(DH, first, NH * DV, steps, columns, S, DV).to(tl.float32), 1)
            y *= slope
            tl.store(Y + at * S + t, y, mask=inside & leads)
            tl.store(DN_STATES + at_chunk * DK + keys, dn, mask=(keys < DK) & leads)
            dn = dn * decay + tl.sum(q.to(tl.float32) * (reads * y)[:, None], 0)
        else:
            tl.store(DN_STATES + at_chunk * DK + keys, dn, mask=(keys < DK) & leads)
            dn = dn * decay
    tl.store(DC_FIRST + at * DK * DV + of_state, dC, mask=in_state)
    tl.store(DN_FIRST + at * DK + keys, dn, mask=(keys < DK) & leads)


@triton.jit(do_not_specialize=["S"])
def mlstm_backward_chunks(
    Q,
    K,
    V,
    RESETS,
    DH,
    A,
    U,
    Y,
    SCALES,
    C_STATES,
    N_STATES,
    DC_STATES,
    DN_STATES,
    DQ,
    DK_OUT,
    DV_OUT,
    DI,
    DLOGF,
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
    DK,
    DV,
    scale,
    BK: tl.constexpr,
    BV: tl.constexpr,
    TILES: tl.constexpr,
    L: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program a chunk of a head of a row, all in parallel, from the state before it and the gradient after it."""
    NC = tl.cdiv(S, L)
    at_chunk = tl.program_id(0).to(tl.int64)  # of (B, NH, NC)
    at, chunk = at_chunk // NC, at_chunk % NC
    row, head = at // NH, at % NH
    steps, keys = tl.arange(0, L), tl.arange(0, BK)
    first = chunk * L
    t = first + steps
    inside = t < S
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    keys_at, values_at = row * S * NH * DK + head * DK, row * S * NH * DV + head * DV
    q = _load_tile(Q, first, q_step, steps, keys, S, DK).to(OPERAND)  # (L, BK)
    k = _load_tile(K, first, k_step, steps, keys, S, DK).to(OPERAND)
    a = tl.load(A + at * S + t, mask=inside, other=-float("inf"))  # (L,)
    u = tl.load(U + at * S + t, mask=inside, other=float("inf"))
    m = tl.load(SCALES + 2 * at_chunk)
    shift = tl.load(SCALES + 2 * at_chunk + 1)
    segment = _segments(RESETS, row, t, S, WITH_RESETS)

    # Rows are the step s that writes, columns the step t that reads.
    visible, to_end, last_segment = steps[:, None] <= steps[None, :], a, 0
    if WITH_RESETS:
        last_segment = tl.max(segment, 0)
        visible = visible & (segment[:, None] == segment[None, :])
        to_end = tl.where(segment == last_segment, a, -float("inf"))
    weights = tl.where(visible, _power(a[:, None] - u[None, :]), 0.0) * scale  # (L, L)
    written = _power(to_end + shift)  # (L,)
    reads = _power(_of_segment_0(m, segment, WITH_RESETS) - u) * scale
    decay = _power(_of_segment_0(m, last_segment, WITH_RESETS) + shift)

    scores = (tl.dot(k, tl.trans(q), input_precision=PRECISION) * weights).to(OPERAND)  # (L, L)
    dscores = tl.zeros((L, L), tl.float32)
    dq = tl.zeros((L, BK), tl.float32)
    dk = tl.zeros((L, BK), tl.float32)
    leaving = tl.zeros((BK,), tl.float32)  # <C, dC> of what the state before the chunk hands on
    for tile in tl.range(TILES, num_stages=1):
        values = tile * BV + tl.arange(0, BV)
        of_state = at_chunk * DK * DV + keys[:, None] * DV + values[None, :]
        in_state = (keys < DK)[:, None] & (values < DV)[None, :]
        v = _load_tile(V, first, v_step, steps, values, S, DV).to(OPERAND)  # (L, BV)
        dh = _load_tile(DH + values_at, first, NH * DV, steps, values, S, DV).to(OPERAND)
        C = tl.load(C_STATES + of_state, mask=in_state, other=0.0)  # (BK, BV)
        dC = tl.load(DC_STATES + of_state, mask=in_state, other=0.0)
        dscores = tl.dot(v, tl.trans(dh), dscores, input_precision=PRECISION)
        dk = tl.dot(v, tl.trans(dC), dk, input_precision=PRECISION)
        dq = tl.dot(dh, tl.trans(C), dq, input_precision=PRECISION)
        dv = tl.dot(k, dC, input_precision=PRECISION) * written[:, None]
        dv = tl.dot(scores, dh, dv, input_precision=PRECISION)
        _store_tile(DV_OUT + values_at, dv, first, NH * DV, steps, values, S, DV)
        leaving += tl.sum(C.to(tl.float32) * dC.to(tl.float32), 1)

    n = tl.load(N_STATES + at_chunk * DK + keys, mask=keys < DK, other=0.0)
    dn = tl.load(DN_STATES + at_chunk * DK + keys, mask=keys < DK, other=0.0)
    dk += dn[None, :]
    if NORMALIZE:
        y = tl.load(Y + at * S + t, mask=inside, other=0.0)
        dscores += y[None, :]
        dq += y[:, None] * n[None, :]
    dscores = (dscores * weights).to(OPERAND)
    dk = tl.dot(dscores, q, dk * written[:, None], input_precision=PRECISION)
    _store_tile(DK_OUT + keys_at, dk, first, NH * DK, steps, keys, S, DK)
    di = tl.sum(k.to(tl.float32) * dk, 1)  # (L,)
    tl.store(DI + (row * S + t) * NH + head, di, mask=inside)

    # log f of step r weighs all that crosses r. At the chunk's start that is what comes from the state before it; each
    # step then takes away what it reads and adds what it writes. Closed in each chunk, it does not lose with S.
    dq = dq * reads[:, None]
    entering = decay * tl.sum(leaving + n * dn, 0) + tl.sum(tl.sum(q.to(tl.float32) * dq, 1), 0)
    dq = tl.dot(tl.trans(dscores), k, dq, input_precision=PRECISION)
    _store_tile(DQ + keys_at, dq, first, NH * DK, steps, keys, S, DK)
    taken = tl.sum(q.to(tl.float32) * dq, 1) - di  # (L,)
    if WITH_RESETS:
        _, so_far = tl.associative_scan((segment, taken), 0, _sum_of_segment)
        crossing = tl.where(segment == 0, entering, 0.0) - (so_far - taken)
    else:
        crossing = entering - (tl.cumsum(taken, 0) - taken)
    tl.store(DLOGF + (row * S + t) * NH + head, crossing, mask=inside)
