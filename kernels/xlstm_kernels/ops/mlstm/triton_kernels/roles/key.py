"""dk of the steps that a program writes with, from the state after their chunk and each other. See ../shared.py."""

import triton
import triton.language as tl

from ..parts import AT_K_DK, load_dn, load_y, role_part
from ..shared import left_of, load_tile, state_tile, store_tile
from ..tape import AT_A, AT_U, AT_WRITTEN, load_segment, record_of
from .weights import chunk_weights


@triton.jit
def key_role(
    Q,
    K,
    V,
    DH,
    TAPE,
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
    NC, blocks = tl.cdiv(S, L), tl.cdiv(S, BM)
    chunk_first = block // (L // BM) * (L // BM)
    chunk_end = tl.minimum(chunk_first + L // BM, blocks)
    chunk, chunks = at * NC + block // (L // BM), heads.to(tl.int64) * NC
    CHUNK = record_of(TAPE, chunk, L, DK)
    steps = tl.arange(0, BM)
    here = (block - chunk_first) * BM + steps
    first = block.to(tl.int64) * BM
    segment = load_segment(CHUNK, here, L, WITH_RESETS)
    keys, values = key_role * OUT + tl.arange(0, OUT), tl.arange(0, BV)
    a, written = tl.load(CHUNK + AT_A * L + here), tl.load(CHUNK + AT_WRITTEN * L + here).to(tl.float32)
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
    dn = load_dn(PARTS, chunk, chunks, keys, L, DK, Y_TILES)
    dk = (dk + dn[None, :]) * written[:, None]
    for reader in tl.range(block, chunk_end, num_stages=STAGES):
        start = tl.cast(reader, tl.int64) * BM
        there = (reader - chunk_first) * BM + steps
        dh = load_tile(DH, start, dh_step, steps, values, S, DV).to(OPERAND)
        q = load_tile(Q, start, q_step, steps, keys, S, DK).to(OPERAND)
        u = tl.load(CHUNK + AT_U * L + there, mask=steps < left_of(S, start), other=float("inf")) - log2_scale
        dscores = tl.dot(v, tl.trans(dh), input_precision=PRECISION)  # (BM, BM), rows write
        if VALUE_TILES > 1:
            for tile in range(1, VALUE_TILES):
                more = values + tile * BV
                v_more = load_tile(V, first, v_step, steps, more, S, DV).to(OPERAND)
                dh_more = load_tile(DH, start, dh_step, steps, more, S, DV).to(OPERAND)
                dscores = tl.dot(v_more, tl.trans(dh_more), dscores, input_precision=PRECISION)
        if NORMALIZE:
            dscores += load_y(PARTS, chunk, chunks, there, L, DK, Y_TILES)[None, :]
        of_readers = load_segment(CHUNK, there, L, WITH_RESETS)
        dscores *= chunk_weights(a, u, here, there, segment, of_readers, WITH_RESETS)
        dk = tl.dot(dscores.to(OPERAND), q, dk, input_precision=PRECISION)
    store_tile(DK_OUT, dk, first, dk_step, steps, keys, S, DK)
    k = load_tile(K, first, k_step, steps, keys, S, DK).to(tl.float32)
    PART = role_part(PARTS, key_role, chunk, chunks, L, DK, Y_TILES)
    tl.store(PART + AT_K_DK * L + here, tl.sum(k * dk, 1))
