"""The causal convolution, SiLU and what an mLSTM reads off them on a GPU, forwards and backwards.

A tile is BT steps by BC channels. Steps are counted through all rows, so that a step of many rows fills a tile as well
as many steps of one. Headwise maps are products with a tile of the block-diagonal matrix: CHANNELS of the BC channels
are used, as many as whole blocks fill. B, S and strides are run-time numbers, for none of whose values a kernel is
compiled. Shapes: N = B S steps, E channels, K convolution kernel size, GATES the gates' number 2 NH, padded.
"""

import triton
import triton.language as tl


@triton.jit
def _steps_since_reset(resets, token, step, here, K: tl.constexpr):
    """How many steps ago the row was last reset, at most K."""
    age = tl.full(step.shape, K, tl.int32)
    for back in tl.static_range(1, K):
        lag = K - 1 - back  # from the farthest to the nearest
        age = tl.where(tl.load(resets + token - lag, mask=here & (step >= lag), other=0) != 0, lag, age)
    return age


@triton.jit
def _past(
    x_at, window, row, step, age, channel, here, lag: tl.constexpr, begins, x_s, E: tl.constexpr, K: tl.constexpr
):
    """What the convolution reads ``lag`` steps back: the sequence, or before it the window; zero behind a reset.

    ``begins``: whether any of the steps is among the first of its row, so that the window is needed.
    """
    seen = age >= lag
    past = tl.load(x_at - lag * x_s * E, mask=here & (seen & (step >= lag))[:, None], other=0.0).to(tl.float32)
    if lag > 0:  # noqa: SIM102 (known at compilation, the other is not)
        if begins:
            at = window + ((row * (K - 1) + K - 1 + step - lag) * E)[:, None] + channel[None, :]
            before = tl.load(at, mask=here & (seen & (step < lag))[:, None], other=0.0)
            past += before.to(x_at.dtype.element_ty).to(tl.float32)
    return past


@triton.jit
def _map_tile(weight, channel, used, E: tl.constexpr, BLOCK: tl.constexpr, BY_INPUT: tl.constexpr, TYPE: tl.constexpr):
    """The tile of a block-diagonal matrix given as (blocks, out, in): [out, in], or [in, out] if BY_INPUT."""
    rows, columns = channel[:, None], channel[None, :]
    same = (rows // BLOCK == columns // BLOCK) & used[:, None] & used[None, :]
    at = columns * BLOCK + rows % BLOCK if BY_INPUT else rows * BLOCK + columns % BLOCK
    return tl.load(weight + at, mask=same, other=0.0).to(TYPE)


@triton.jit
def _gate_tile(weight, part: tl.constexpr, channel, used, E: tl.constexpr, NH: tl.constexpr, GATES: tl.constexpr, TYPE):
    """What the gates read of these channels of q, k or v (part 0, 1, 2): [gate, channel]."""
    gate = tl.arange(0, GATES)
    at = weight + gate[:, None] * (3 * E) + part * E + channel[None, :]
    return tl.load(at, mask=(gate < 2 * NH)[:, None] & used[None, :], other=0.0).to(TYPE)


@triton.jit
def _gate_gradients(di, df, token, here, NH: tl.constexpr, GATES: tl.constexpr):
    """Those of both gates of each step, (BT, GATES)."""
    gate, at = tl.arange(0, GATES)[None, :], (token.to(tl.int64) * NH)[:, None] + tl.arange(0, GATES)[None, :]
    of_i = tl.load(di + at, mask=here[:, None] & (gate < NH), other=0.0)
    return of_i + tl.load(df + at - NH, mask=here[:, None] & (gate >= NH) & (gate < 2 * NH), other=0.0)


@triton.jit(do_not_specialize=["N", "S", "x_s", "TILES"])
def conv_forward(
    x,  # from step to step, through all rows, x_s in units of E
    window,
    resets,
    lengths,
    conv_weight,
    conv_bias,
    q_map,
    k_map,
    v_map,
    gate_weight,
    convolved,
    q,
    k,
    v,
    gate_shares,  # (tiles of channels, N, 2 NH): what each tile of channels adds to the gates
    after,
    N,
    S,
    x_s,
    TILES,  # tiles of steps that a program goes through
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
    WITH_LENGTHS: tl.constexpr,
):
    CHANNELS: tl.constexpr = BC // BLOCK * BLOCK
    TYPE: tl.constexpr = x.dtype.element_ty
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, BC)
    used = (tl.arange(0, BC) < CHANNELS) & (channel < E)
    bias = tl.load(conv_bias + channel, mask=used, other=0.0).to(tl.float32)
    if MAPPED:
        q_tile = _map_tile(q_map, channel, used, E, BLOCK, True, TYPE)
        k_tile = _map_tile(k_map, channel, used, E, BLOCK, True, TYPE)
        v_tile = _map_tile(v_map, channel, used, E, BLOCK, True, TYPE)
        q_gates = tl.trans(_gate_tile(gate_weight, 0, channel, used, E, NH, GATES, TYPE))
        k_gates = tl.trans(_gate_tile(gate_weight, 1, channel, used, E, NH, GATES, TYPE))
        v_gates = tl.trans(_gate_tile(gate_weight, 2, channel, used, E, NH, GATES, TYPE))

    for tile in tl.range(0, TILES, num_stages=STAGES):
        token = (tl.program_id(1) * TILES + tile) * BT + tl.arange(0, BT)
        in_batch = token < N
        row, step = (token // S).to(tl.int64), token % S
        here = in_batch[:, None] & used[None, :]
        out = (token.to(tl.int64) * E)[:, None] + channel[None, :]
        x_at = x + (token.to(tl.int64) * x_s * E)[:, None] + channel[None, :]
        begins = tl.min(tl.where(in_batch, step, S)) < K - 1
        age = tl.full((BT,), K, tl.int32)
        if WITH_RESETS:
            age = _steps_since_reset(resets, token, step, in_batch, K)
        end = tl.zeros((BT,), tl.int32) + S
        if WITH_LENGTHS:
            end = tl.load(lengths + row, mask=in_batch, other=1).to(tl.int32)
        ends = tl.max(tl.where(in_batch, step - end, -S)) >= -1
        pre = tl.zeros((BT, BC), tl.float32) + bias[None, :]
        present = _past(x_at, window, row, step, age, channel, here, 0, begins, x_s, E, K)
        for lag in tl.static_range(K):
            past = present
            if lag > 0:
                past = _past(x_at, window, row, step, age, channel, here, lag, begins, x_s, E, K)
            tap = tl.load(conv_weight + (K - 1 - lag) * E + channel, mask=used, other=0.0).to(tl.float32)
            pre += past * tap[None, :]
            if lag < K - 1:  # the last step has just what the window after it holds
                entry = ((row * (K - 1) + K - 2 - lag) * E)[:, None] + channel[None, :]
                if ends:
                    tl.store(after + entry, past, mask=here & (step == end - 1)[:, None])
                if WITH_LENGTHS:  # a row without steps keeps the window
                    empty = here & ((end == 0) & (step == 0))[:, None]
                    tl.store(after + entry, tl.load(window + entry, mask=empty, other=0.0), mask=empty)
        c = (pre * tl.sigmoid(pre)).to(TYPE)
        tl.store(convolved + out, c, mask=here)
        if MAPPED:
            key = tl.dot(c, k_tile, input_precision="ieee").to(TYPE)
            tl.store(k + out, key, mask=here)
            gates = tl.dot(key, k_gates, input_precision="ieee")
            query = tl.dot(c, q_tile, input_precision="ieee").to(TYPE)
            tl.store(q + out, query, mask=here)
            gates = tl.dot(query, q_gates, gates, input_precision="ieee")
            value = tl.dot(present.to(TYPE), v_tile, input_precision="ieee").to(TYPE)
            tl.store(v + out, value, mask=here)
            gates = tl.dot(value, v_gates, gates, input_precision="ieee")
            gate = tl.arange(0, GATES)[None, :]
            share_at = ((tl.program_id(0).to(tl.int64) * N + token) * (2 * NH))[:, None] + gate
            tl.store(gate_shares + share_at, gates, mask=in_batch[:, None] & (gate < 2 * NH))


@triton.jit(do_not_specialize=["N"])
def gates_forward(
    gate_shares,
    gate_bias,
    i,
    f,
    N,
    COLUMNS: tl.constexpr,
    NH: tl.constexpr,
    GATES: tl.constexpr,
    BT: tl.constexpr,
):
    """Both gates, from what the tiles of channels add to them."""
    token, gate = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)[:, None], tl.arange(0, GATES)[None, :]
    here = (token < N) & (gate < 2 * NH)
    gates = tl.zeros((BT, GATES), tl.float32) + tl.load(gate_bias + gate, mask=gate < 2 * NH, other=0.0).to(tl.float32)
    for column in range(COLUMNS):
        at = (tl.cast(column, tl.int64) * N + token) * (2 * NH) + gate
        gates += tl.load(gate_shares + at, mask=here, other=0.0)
    tl.store(i + token * NH + gate, gates, mask=here & (gate < NH))
    tl.store(f + token * NH + gate - NH, gates, mask=here & (gate >= NH))


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
    CHANNELS: tl.constexpr = BC // BLOCK * BLOCK
    TYPE: tl.constexpr = x.dtype.element_ty
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, BC)
    used = (tl.arange(0, BC) < CHANNELS) & (channel < E)
    bias = tl.load(conv_bias + channel, mask=used, other=0.0).to(tl.float32)
    if MAPPED:
        q_tile = _map_tile(q_map, channel, used, E, BLOCK, False, TYPE)
        k_tile = _map_tile(k_map, channel, used, E, BLOCK, False, TYPE)
        q_gates = _gate_tile(gate_weight, 0, channel, used, E, NH, GATES, TYPE)
        k_gates = _gate_tile(gate_weight, 1, channel, used, E, NH, GATES, TYPE)
        dq_map, dk_map = tl.zeros((BC, BC), tl.float32), tl.zeros((BC, BC), tl.float32)
        dq_gates, dk_gates = tl.zeros((GATES, BC), tl.float32), tl.zeros((GATES, BC), tl.float32)

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
            age = _steps_since_reset(resets, token, step, in_batch, K)
        pre = tl.zeros((BT, BC), tl.float32) + bias[None, :]
        for lag in tl.static_range(K):
            tap = tl.load(conv_weight + (K - 1 - lag) * E + channel, mask=used, other=0.0).to(tl.float32)
            pre += _past(x_at, window, row, step, age, channel, here, lag, begins, x_s, E, K) * tap
        gate = tl.sigmoid(pre)
        dc = tl.load(dconvolved + at, mask=here, other=0.0).to(tl.float32)
        if MAPPED:
            c = (pre * gate).to(TYPE)
            dgates = _gate_gradients(di, df, token, in_batch, NH, GATES).to(TYPE)
            query = tl.dot(c, tl.trans(q_tile), input_precision="ieee").to(TYPE)
            dq_gates = tl.dot(tl.trans(dgates), query, dq_gates, input_precision="ieee")
            dquery = tl.load(dq + at, mask=here, other=0.0).to(tl.float32)
            dquery = tl.dot(dgates, q_gates, dquery, input_precision="ieee").to(TYPE)
            dq_map = tl.dot(tl.trans(dquery), c, dq_map, input_precision="ieee")
            dc = tl.dot(dquery, q_tile, dc, input_precision="ieee")
            key = tl.dot(c, tl.trans(k_tile), input_precision="ieee").to(TYPE)
            dk_gates = tl.dot(tl.trans(dgates), key, dk_gates, input_precision="ieee")
            dkey = tl.load(dk + at, mask=here, other=0.0).to(tl.float32)
            dkey = tl.dot(dgates, k_gates, dkey, input_precision="ieee").to(TYPE)
            dk_map = tl.dot(tl.trans(dkey), c, dk_map, input_precision="ieee")
            dc = tl.dot(dkey, k_tile, dc, input_precision="ieee")
        slope = gate * (1.0 + pre * (1.0 - gate))
        tl.store(dpre + at, (dc * slope).to(TYPE), mask=here)

    if MAPPED:
        base = totals + tl.program_id(1).to(tl.int64) * totals_size + (K + 1) * E
        _store_map_gradient(base, dq_map, channel, used, BLOCK)
        _store_map_gradient(base + E * BLOCK, dk_map, channel, used, BLOCK)
        _store_gate_gradient(base + 3 * E * BLOCK, 0, dq_gates, channel, used, E, NH, GATES)
        _store_gate_gradient(base + 3 * E * BLOCK, 1, dk_gates, channel, used, E, NH, GATES)


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
    STAGES: tl.constexpr,
    MAPPED: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    WITH_LENGTHS: tl.constexpr,
):
    """From dpre and the values' gradient to those of the inputs, the window, and the weights that read either."""
    CHANNELS: tl.constexpr = BC // BLOCK * BLOCK
    TYPE: tl.constexpr = x.dtype.element_ty
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, BC)
    used = (tl.arange(0, BC) < CHANNELS) & (channel < E)
    base = totals + tl.program_id(1).to(tl.int64) * totals_size
    if MAPPED:
        tile_v = _map_tile(v_map, channel, used, E, BLOCK, False, TYPE)
        v_gates = _gate_tile(gate_weight, 2, channel, used, E, NH, GATES, TYPE)
        dv_map, dv_gates = tl.zeros((BC, BC), tl.float32), tl.zeros((GATES, BC), tl.float32)
        dgate_bias = tl.zeros((BT, GATES), tl.float32)
    lags = tl.arange(0, 16)
    dconv = tl.zeros((16, BC), tl.float32)  # a row for each lag, then the bias

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
        given32 = given.to(tl.float32)
        dgiven = tl.zeros((BT, BC), tl.float32)
        dpre_at = dpre + (token * E)[:, None] + channel[None, :]
        seen = in_batch
        for lag in tl.static_range(K):
            later = step + lag
            reads = in_batch & (later >= 0) & (later < S)
            if WITH_RESETS and lag > 0:
                seen = seen & (tl.load(resets + token + lag, mask=reads, other=0) == 0)
            dthen = tl.load(dpre_at + lag * E, mask=here & (reads & seen)[:, None], other=0.0).to(tl.float32)
            tap = tl.load(conv_weight + (K - 1 - lag) * E + channel, mask=used, other=0.0).to(tl.float32)
            dgiven += dthen * tap[None, :]
            dconv += tl.where((lags == lag)[:, None], tl.sum(dthen * given32, axis=0)[None, :], 0.0)
            if lag == 0:
                dconv += tl.where((lags == K)[:, None], tl.sum(dthen, axis=0)[None, :], 0.0)
            if lag < K - 1:  # noqa: SIM102 (kept in the window after the row's last step)
                if ends:
                    entry = ((row * (K - 1) + K - 2 - lag) * E)[:, None] + channel[None, :]
                    kept = here & (seen & (later == end - 1))[:, None]
                    dgiven += tl.load(dafter + entry, mask=kept, other=0.0).to(tl.float32)
        if MAPPED:
            dgates = _gate_gradients(di, df, token, in_sequence, NH, GATES)
            dgate_bias += dgates
            dgates = dgates.to(TYPE)
            value = tl.dot(given, tl.trans(tile_v), input_precision="ieee").to(TYPE)
            dv_gates = tl.dot(tl.trans(dgates), value, dv_gates, input_precision="ieee")
            at_v = (token * E)[:, None] + channel[None, :]
            dvalue = tl.load(dv + at_v, mask=here & in_sequence[:, None], other=0.0).to(tl.float32)
            dvalue = tl.dot(dgates, v_gates, dvalue, input_precision="ieee").to(TYPE)
            dv_map = tl.dot(tl.trans(dvalue), given, dv_map, input_precision="ieee")
            dgiven = tl.dot(dvalue, tile_v, dgiven, input_precision="ieee")
        if begins:
            tl.store(dwindow + before, dgiven, mask=in_window)
        tl.store(dx + (token * E)[:, None] + channel[None, :], dgiven.to(TYPE), mask=here & in_sequence[:, None])

    lag_row = tl.where(lags < K, K - 1 - lags, lags)[:, None]  # weights lie from the oldest to the present step
    tl.store(base + lag_row * E + channel[None, :], dconv, mask=(lags <= K)[:, None] & used[None, :])
    if MAPPED:
        base += (K + 1) * E
        _store_map_gradient(base + 2 * E * BLOCK, dv_map, channel, used, BLOCK)
        _store_gate_gradient(base + 3 * E * BLOCK, 2, dv_gates, channel, used, E, NH, GATES)
        if tl.program_id(0) == 0:
            gate = tl.arange(0, GATES)
            at_bias = base + 3 * E * BLOCK + 6 * NH * E + gate
            tl.store(at_bias, tl.sum(dgate_bias, axis=0), mask=gate < 2 * NH)


@triton.jit
def _store_map_gradient(at, tile, channel, used, BLOCK: tl.constexpr):
    """Of a product of all channels [out, in], the blocks on the diagonal."""
    rows, columns = channel[:, None], channel[None, :]
    same = (rows // BLOCK == columns // BLOCK) & used[:, None] & used[None, :]
    tl.store(at + rows * BLOCK + columns % BLOCK, tile, mask=same)


@triton.jit
def _store_gate_gradient(
    at, part: tl.constexpr, tile, channel, used, E: tl.constexpr, NH: tl.constexpr, GATES: tl.constexpr
):
    gate = tl.arange(0, GATES)
    tl.store(
        at + gate[:, None] * (3 * E) + part * E + channel[None, :], tile, mask=(gate < 2 * NH)[:, None] & used[None, :]
    )
