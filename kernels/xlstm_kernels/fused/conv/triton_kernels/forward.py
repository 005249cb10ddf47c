"""Forwards: the convolution, SiLU, maps, and what each tile of channels adds to the gates; then the gates."""

import triton
import triton.language as tl

from ....ops.triton_math import sigmoid
from .shared import channels_of_program, gate_tile, load_tap, map_tile, past, steps_since_reset


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
    TYPE: tl.constexpr = x.dtype.element_ty
    channel, used = channels_of_program(E, BLOCK, BC)
    bias = tl.load(conv_bias + channel, mask=used, other=0.0).to(tl.float32)
    if MAPPED:
        to_q, to_k, to_v = (
            tl.trans(map_tile(q_map, channel, used, BLOCK, TYPE)),
            tl.trans(map_tile(k_map, channel, used, BLOCK, TYPE)),
            tl.trans(map_tile(v_map, channel, used, BLOCK, TYPE)),
        )
        q_gates = tl.trans(gate_tile(gate_weight, 0, channel, used, E, NH, GATES, TYPE))
        k_gates = tl.trans(gate_tile(gate_weight, 1, channel, used, E, NH, GATES, TYPE))
        v_gates = tl.trans(gate_tile(gate_weight, 2, channel, used, E, NH, GATES, TYPE))
        c_gates = tl.dot(to_k, k_gates, tl.dot(to_q, q_gates, input_precision="ieee"), input_precision="ieee").to(TYPE)
        x_gates = tl.dot(to_v, v_gates, input_precision="ieee").to(TYPE)

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
            age = steps_since_reset(resets, token, step, in_batch, K)
        end = tl.zeros((BT,), tl.int32) + S
        if WITH_LENGTHS:
            end = tl.load(lengths + row, mask=in_batch, other=1).to(tl.int32)
        ends = tl.max(tl.where(in_batch, step - end, -S)) >= -1
        pre = tl.zeros((BT, BC), tl.float32) + bias[None, :]
        present = tl.load(x_at, mask=here, other=0.0)
        for lag in tl.static_range(K):
            read = present.to(tl.float32)
            if lag > 0:
                read = past(x_at, window, row, step, age, channel, here, lag, begins, x_s, E, K)
            tap = load_tap(conv_weight, lag, channel, used, E, K)
            pre += read * tap[None, :]
            if lag < K - 1:  # the last step has just what the window after it holds
                entry = ((row * (K - 1) + K - 2 - lag) * E)[:, None] + channel[None, :]
                if ends:
                    tl.store(after + entry, read, mask=here & (step == end - 1)[:, None])
                if WITH_LENGTHS:  # a row without steps keeps the window
                    empty = here & ((end == 0) & (step == 0))[:, None]
                    tl.store(after + entry, tl.load(window + entry, mask=empty, other=0.0), mask=empty)
        c = (pre * sigmoid(pre)).to(TYPE)
        tl.store(convolved + out, c, mask=here)
        if MAPPED:
            tl.store(q + out, tl.dot(c, to_q, input_precision="ieee").to(TYPE), mask=here)
            tl.store(k + out, tl.dot(c, to_k, input_precision="ieee").to(TYPE), mask=here)
            tl.store(v + out, tl.dot(present, to_v, input_precision="ieee").to(TYPE), mask=here)
            gates = tl.dot(c, c_gates, input_precision="ieee")
            gates = tl.dot(present, x_gates, gates, input_precision="ieee")
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
