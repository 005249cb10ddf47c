"""Backwards: first to what SiLU reads, then through the convolution to its inputs; each with the weights it holds."""

import triton
import triton.language as tl

from ....ops.triton_math import sigmoid
from .shared import channels_of_program, gate_tile, load_tap, map_tile, past, steps_since_reset


@triton.jit
def _gate_gradients(di, df, token, here, NH: tl.constexpr, GATES: tl.constexpr):
    """Those of both gates of each step, (BT, GATES)."""
    gate, at = tl.arange(0, GATES)[None, :], (token.to(tl.int64) * NH)[:, None] + tl.arange(0, GATES)[None, :]
    of_i = tl.load(di + at, mask=here[:, None] & (gate < NH), other=0.0)
    return of_i + tl.load(df + at - NH, mask=here[:, None] & (gate >= NH) & (gate < 2 * NH), other=0.0)


@triton.jit
def _store_block_diagonal(at, tile, channel, used, BLOCK: tl.constexpr):
    """Of a tile [out, in] of all channels, the blocks on the diagonal."""
    rows, columns = channel[:, None], channel[None, :]
    same = (rows // BLOCK == columns // BLOCK) & used[:, None] & used[None, :]
    tl.store(at + rows * BLOCK + columns % BLOCK, tile, mask=same)


@triton.jit(do_not_specialize=["N", "S", "x_s", "TILES", "totals_size"])
def conv_backward_steps(
    x,
    window,
    resets,
    conv_weight,
    conv_bias,
    q_map,
    k_map,
    gate_weight,
    dconvolved,
    dq,
    dk,
    di,
    df,
    dpre,
    totals,  # of each share of the steps, the weights' gradients: see triton_launch
    N,
    S,
    x_s,
    TILES,  # tiles of steps that a program goes through
    totals_size,
    E: tl.constexpr,
    K: tl.constexpr,
    NH: tl.constexpr,
    BLOCK: tl.constexpr,
    GATES: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    STAGES: tl.constexpr,
    MAPPED: tl.constexpr,
    WITH_RESETS: tl.constexpr,
):
    """From the gradients of all that the convolution feeds to that of what SiLU reads, dpre."""
    TYPE: tl.constexpr = x.dtype.element_ty
    channel, used = channels_of_program(E, BLOCK, BC)
    bias = tl.load(conv_bias + channel, mask=used, other=0.0).to(tl.float32)
    if MAPPED:
        to_q, to_k = map_tile(q_map, channel, used, BLOCK, TYPE), map_tile(k_map, channel, used, BLOCK, TYPE)
        q_gates = gate_tile(gate_weight, 0, channel, used, E, NH, GATES, TYPE)
        k_gates = gate_tile(gate_weight, 1, channel, used, E, NH, GATES, TYPE)
        c_gates = tl.dot(k_gates, to_k, tl.dot(q_gates, to_q, input_precision="ieee"), input_precision="ieee").to(TYPE)
        dq_map, dk_map = tl.zeros((BC, BC), tl.float32), tl.zeros((BC, BC), tl.float32)
        dc_gates = tl.zeros((GATES, BC), tl.float32)

    for tile in tl.range(0, TILES, num_stages=STAGES):
        token = (tl.program_id(1) * TILES + tile) * BT + tl.arange(0, BT)
        in_batch = token < N
        row, step = (token // S).to(tl.int64), token % S
        here = in_batch[:, None] & used[None, :]
        at = (token.to(tl.int64) * E)[:, None] + channel[None, :]
        x_at = x + (token.to(tl.int64) * x_s * E)[:, None] + channel[None, :]
        begins = tl.min(tl.where(in_batch, step, S)) < K - 1
        age = tl.full((BT,), K, tl.int32)
        if WITH_RESETS:
            age = steps_since_reset(resets, token, step, in_batch, K)
        pre = tl.zeros((BT, BC), tl.float32) + bias[None, :]
        for lag in tl.static_range(K):
            if lag == 0:
                read = tl.load(x_at, mask=here, other=0.0).to(tl.float32)
            else:
                read = past(x_at, window, row, step, age, channel, here, lag, begins, x_s, E, K)
            tap = load_tap(conv_weight, lag, channel, used, E, K)
            pre += read * tap[None, :]
        gate = sigmoid(pre)
        dc = tl.load(dconvolved + at, mask=here, other=0.0).to(tl.float32)
        if MAPPED:
            c = (pre * gate).to(TYPE)
            dquery, dkey = tl.load(dq + at, mask=here, other=0.0), tl.load(dk + at, mask=here, other=0.0)
            dgates = _gate_gradients(di, df, token, in_batch, NH, GATES).to(TYPE)
            dc = tl.dot(dquery, to_q, dc, input_precision="ieee")
            dc = tl.dot(dkey, to_k, dc, input_precision="ieee")
            dc = tl.dot(dgates, c_gates, dc, input_precision="ieee")
            dq_map = tl.dot(tl.trans(dquery), c, dq_map, input_precision="ieee")
            dk_map = tl.dot(tl.trans(dkey), c, dk_map, input_precision="ieee")
            dc_gates = tl.dot(tl.trans(dgates), c, dc_gates, input_precision="ieee")
        slope = gate * (1.0 + pre * (1.0 - gate))
        tl.store(dpre + at, (dc * slope).to(TYPE), mask=here)

    if MAPPED:
        base = totals + tl.program_id(1).to(tl.int64) * totals_size + (K + 1) * E
        _store_block_diagonal(base, dq_map, channel, used, BLOCK)
        _store_block_diagonal(base + E * BLOCK, dk_map, channel, used, BLOCK)
        gate = tl.arange(0, GATES)[:, None]
        of_gates = base + 3 * E * BLOCK + gate * E + channel[None, :]
        tl.store(of_gates, dc_gates, mask=(gate < 2 * NH) & used[None, :])


@triton.jit
def _sum_within_threads(tile, BR: tl.constexpr):
    """(BT, BC) summed over every BR-th step: (BR, BC)."""
    return tl.sum(tl.reshape(tile, (tile.shape[0] // BR, BR, tile.shape[1])), axis=0)


@triton.jit(do_not_specialize=["P", "S", "x_s", "TILES", "totals_size"])
def conv_backward_inputs(
    x,
    window,
    resets,
    lengths,
    conv_weight,
    v_map,
    gate_weight,
    dpre,
    dv,
    di,
    df,
    dafter,
    dx,
    dwindow,
    totals,
    P,  # B (S + K - 1) places: each row's window, then its steps
    S,
    x_s,
    TILES,
    totals_size,
    E: tl.constexpr,
    K: tl.constexpr,
    NH: tl.constexpr,
    BLOCK: tl.constexpr,
    GATES: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,  # steps that different threads hold: sums over others are a thread's own
    STAGES: tl.constexpr,
    MAPPED: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    WITH_LENGTHS: tl.constexpr,
):
    """From dpre and the values' gradient to those of the inputs, the window, and the weights that read either."""
    TYPE: tl.constexpr = x.dtype.element_ty
    channel, used = channels_of_program(E, BLOCK, BC)
    base = totals + tl.program_id(1).to(tl.int64) * totals_size
    if MAPPED:
        to_v = map_tile(v_map, channel, used, BLOCK, TYPE)
        v_gates = gate_tile(gate_weight, 2, channel, used, E, NH, GATES, TYPE)
        x_gates = tl.dot(v_gates, to_v, input_precision="ieee").to(TYPE)
        dv_map, dx_gates = tl.zeros((BC, BC), tl.float32), tl.zeros((GATES, BC), tl.float32)
        dgate_bias = tl.zeros((BT, GATES), tl.float32)
    dtaps = (tl.zeros((BR, BC), tl.float32),) * (K + 1)  # by lag, then the bias

    for tile in tl.range(0, TILES, num_stages=STAGES):
        place = (tl.program_id(1) * TILES + tile) * BT + tl.arange(0, BT)
        in_batch = place < P
        row, step = (place // (S + K - 1)).to(tl.int64), place % (S + K - 1) - (K - 1)
        here = in_batch[:, None] & used[None, :]
        in_sequence = in_batch & (step >= 0)
        token = row * S + step
        end = tl.zeros((BT,), tl.int32) + S
        if WITH_LENGTHS:
            end = tl.load(lengths + row, mask=in_batch, other=1).to(tl.int32)
        at = token * x_s * E
        given = tl.load(x + at[:, None] + channel[None, :], mask=here & (step >= 0)[:, None], other=0.0)
        before = ((row * (K - 1) + K - 1 + step) * E)[:, None] + channel[None, :]
        in_window = here & (step < 0)[:, None]
        begins = tl.min(tl.where(in_batch, step, S)) < 0
        if begins:
            given = tl.where(in_window, tl.load(window + before, mask=in_window, other=0.0).to(TYPE), given)
        ends = tl.max(tl.where(in_batch, step - end, -K)) > -K
        dgiven = tl.zeros((BT, BC), tl.float32)
        dpre_at = dpre + (token * E)[:, None] + channel[None, :]
        seen, more = in_batch, ()
        for lag in tl.static_range(K):
            later = step + lag
            reads = in_batch & (later >= 0) & (later < S)
            if WITH_RESETS and lag > 0:
                seen = seen & (tl.load(resets + token + lag, mask=reads, other=0) == 0)
            dthen = tl.load(dpre_at + lag * E, mask=here & (reads & seen)[:, None], other=0.0).to(tl.float32)
            tap = load_tap(conv_weight, lag, channel, used, E, K)
            dgiven += dthen * tap[None, :]
            if lag == 0:
                of_bias = dtaps[K] + _sum_within_threads(dthen, BR)
            of_tap = dtaps[lag] + _sum_within_threads(dthen * given.to(tl.float32), BR)
            more = more + (of_tap,)  # type: ignore[assignment]  # noqa: RUF005 (Triton does not unpack)
            if lag < K - 1:  # noqa: SIM102 (kept in the window after the row's last step)
                if ends:
                    entry = ((row * (K - 1) + K - 2 - lag) * E)[:, None] + channel[None, :]
                    kept = here & (seen & (later == end - 1))[:, None]
                    dgiven += tl.load(dafter + entry, mask=kept, other=0.0).to(tl.float32)
        dtaps = more + (of_bias,)  # noqa: RUF005
        if MAPPED:
            dgates = _gate_gradients(di, df, token, in_sequence, NH, GATES)
            dgate_bias += dgates
            dgates = dgates.to(TYPE)
            at_v = (token * E)[:, None] + channel[None, :]
            dvalue = tl.load(dv + at_v, mask=here & in_sequence[:, None], other=0.0)
            dgiven = tl.dot(dvalue, to_v, dgiven, input_precision="ieee")
            dgiven = tl.dot(dgates, x_gates, dgiven, input_precision="ieee")
            dv_map = tl.dot(tl.trans(dvalue), given, dv_map, input_precision="ieee")
            dx_gates = tl.dot(tl.trans(dgates), given, dx_gates, input_precision="ieee")
        if begins:
            tl.store(dwindow + before, dgiven, mask=in_window)
        tl.store(dx + (token * E)[:, None] + channel[None, :], dgiven.to(TYPE), mask=here & in_sequence[:, None])

    for lag in tl.static_range(K + 1):
        place = K - 1 - lag if lag < K else K  # weights lie from the oldest to the present step, then the bias
        tl.store(base + place * E + channel, tl.sum(dtaps[lag], axis=0), mask=used)
    if MAPPED:
        base += (K + 1) * E
        _store_block_diagonal(base + 2 * E * BLOCK, dv_map, channel, used, BLOCK)
        base += 3 * E * BLOCK + 2 * NH * E
        gate = tl.arange(0, GATES)
        of_gates = base + gate[:, None] * E + channel[None, :]
        tl.store(of_gates, dx_gates, mask=(gate < 2 * NH)[:, None] & used[None, :])
        if tl.program_id(0) == 0:
            tl.store(base + 2 * NH * E + gate, tl.sum(dgate_bias, axis=0), mask=gate < 2 * NH)


@triton.jit
def weights_backward(
    total,  # the sum of all shares' totals
    q_map,
    k_map,
    v_map,
    gate_weight,
    dweights,  # one after the other, as they were given
    E: tl.constexpr,
    K: tl.constexpr,
    NH: tl.constexpr,
    BLOCK: tl.constexpr,
    GATES: tl.constexpr,
    BC: tl.constexpr,
):
    """From the gradients of products of maps and gate weights to those of both; for all else, a copy."""
    channel, used = channels_of_program(E, BLOCK, BC)
    gate, rows, columns = tl.arange(0, GATES), channel[:, None], channel[None, :]
    of_gates = (gate < 2 * NH)[:, None] & used[None, :]
    for place in tl.static_range(K + 1):
        at = place * E + channel
        tl.store(dweights + at, tl.load(total + at, mask=used, other=0.0), mask=used)
    MAPS: tl.constexpr = (K + 1) * E
    PRODUCTS: tl.constexpr = MAPS + 3 * E * BLOCK
    same = (rows // BLOCK == columns // BLOCK) & used[:, None] & used[None, :]
    in_block = rows * BLOCK + columns % BLOCK
    for part in tl.static_range(3):
        of_map = q_map if part == 0 else (k_map if part == 1 else v_map)
        product = PRODUCTS + (2 * NH * E if part == 2 else 0)
        dproduct = tl.load(total + product + gate[:, None] * E + columns, mask=of_gates, other=0.0)
        matrix = map_tile(of_map, channel, used, BLOCK, tl.float32)
        gates = gate_tile(gate_weight, part, channel, used, E, NH, GATES, tl.float32)
        at = MAPS + part * E * BLOCK + in_block
        own = tl.load(total + at, mask=same, other=0.0)
        tl.store(dweights + at, tl.dot(tl.trans(gates), dproduct, own, input_precision="ieee"), mask=same)
        at = PRODUCTS + gate[:, None] * (3 * E) + part * E + columns
        tl.store(dweights + at, tl.dot(dproduct, tl.trans(matrix), input_precision="ieee"), mask=of_gates)
    bias = gate < (2 * NH if tl.program_id(0) == 0 else 0)
    of_bias = tl.load(total + PRODUCTS + 4 * NH * E + gate, mask=bias)
    tl.store(dweights + PRODUCTS + 6 * NH * E + gate, of_bias, mask=bias)
