"""dk of the steps that a program writes with, from the state after their chunk and each other. See ../shared.py."""

import triton
import triton.language as tl

from ..parts import load_dn, load_segment, load_y, role_part
from ..shared import left_of, load_tile, state_tile, store_tile, tape_of_steps, tape_of_steps_apart
from .weights import chunk_weights


@triton.jit
def key_role(
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
    segment = load_segment(SEGMENT + first, steps, inside, -1.0, WITH_RESETS)
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
    dn = load_dn(PARTS, heads, at, S, NC, chunk, keys, DK, Y_TILES)
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
            dscores += load_y(PARTS, heads, at, S, start, steps, Y_TILES)[None, :]
        of_readers = load_segment(SEGMENT + start, steps, reader_inside, -2.0, WITH_RESETS)
        dscores *= chunk_weights(a, u, steps, (reader - block) * BM, segment, of_readers, WITH_RESETS)
        dk = tl.dot(dscores.to(OPERAND), q, dk, input_precision=PRECISION)
    store_tile(DK_OUT, dk, first, dk_step, steps, keys, S, DK)
    k = load_tile(K, first, k_step, steps, keys, S, DK).to(tl.float32)
    K_DK = role_part(PARTS, heads, at, S, NC, 2, key_role, DK, Y_TILES, KEY_ROLES)
    tl.store(K_DK + first + steps, tl.sum(k * dk, 1), mask=inside)
