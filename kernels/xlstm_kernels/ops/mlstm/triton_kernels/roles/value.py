"""dv of the steps that a program writes: from the state after their chunk and each other. Letters: ../shared.py."""

import triton
import triton.language as tl

from ..shared import left_of, load_tile, state_tile, store_tile
from ..tape import AT_A, AT_U, AT_WRITTEN, load_segment, record_of
from .weights import chunk_weights


@triton.jit
def value_role(
    Q,
    K,
    V,
    DH,
    TAPE,
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
    WITH_RESETS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dv of OUT values, for the program's own steps, which write."""
    KEY_TILES: tl.constexpr = (DK + BK - 1) // BK
    NC, blocks = tl.cdiv(S, L), tl.cdiv(S, BM)
    chunk_first = block // (L // BM) * (L // BM)
    chunk_end = tl.minimum(chunk_first + L // BM, blocks)
    CHUNK = record_of(TAPE, at * NC + block // (L // BM), L, DK)
    steps = tl.arange(0, BM)
    here = (block - chunk_first) * BM + steps
    first = block.to(tl.int64) * BM
    segment = load_segment(CHUNK, here, L, WITH_RESETS)
    keys, values = tl.arange(0, BK), value_role * OUT + tl.arange(0, OUT)
    a, written = tl.load(CHUNK + AT_A * L + here), tl.load(CHUNK + AT_WRITTEN * L + here).to(tl.float32)
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
        there = (reader - chunk_first) * BM + steps
        q = load_tile(Q, start, q_step, steps, keys, S, DK).to(OPERAND)
        dh = load_tile(DH, start, dh_step, steps, values, S, DV).to(OPERAND)
        u = tl.load(CHUNK + AT_U * L + there, mask=steps < left_of(S, start), other=float("inf")) - log2_scale
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BM, BM), rows write
        if KEY_TILES > 1:
            for tile in range(1, KEY_TILES):
                more = keys + tile * BK
                k_more = load_tile(K, first, k_step, steps, more, S, DK).to(OPERAND)
                q_more = load_tile(Q, start, q_step, steps, more, S, DK).to(OPERAND)
                scores = tl.dot(k_more, tl.trans(q_more), scores, input_precision=PRECISION)
        of_readers = load_segment(CHUNK, there, L, WITH_RESETS)
        scores *= chunk_weights(a, u, here, there, segment, of_readers, WITH_RESETS)
        dv = tl.dot(scores.to(OPERAND), dh, dv, input_precision=PRECISION)
    store_tile(DV_OUT, dv, first, dv_step, steps, values, S, DV)
