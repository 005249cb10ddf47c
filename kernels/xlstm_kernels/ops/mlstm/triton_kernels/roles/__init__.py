"""The way back through wide heads, whose chunk's gradients outgrow the registers of a program.

A program takes BM steps and one of three roles, the gradient of a tile of queries, of keys or of values; what the
gates get is summed up afterwards, by a kernel of backward.py. Letters: ../shared.py.
"""

import triton
import triton.language as tl

from .key import key_role
from .query import query_role
from .value import value_role


@triton.jit(do_not_specialize=["S", "NH"])
def mlstm_backward_roles(
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
    scale,
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
    """One program BM steps of a head of a row in one role: dq or dk of OUT keys, or dv of OUT values."""
    log2_scale = tl.log2(scale)
    KEY_ROLES: tl.constexpr = (DK + OUT - 1) // OUT
    ROLES: tl.constexpr = 2 * KEY_ROLES + (DV + OUT - 1) // OUT
    role = tl.program_id(0) % ROLES
    block = tl.program_id(0) // ROLES
    blocks = tl.cdiv(S, BM)
    heads = tl.num_programs(0) // ROLES // blocks
    at = (block // blocks).to(tl.int64)  # of (B, NH)
    block = block % blocks
    row, head = at // NH, at % NH
    chunk = (at * tl.cdiv(S, L) + block // (L // BM)) * DK * DV
    Q += row * q_batch + head * q_head
    K += row * k_batch + head * k_head
    V += row * v_batch + head * v_head
    DH += row * S * NH * DV + head * DV
    C_STATES += chunk
    DC_STATES += chunk
    if role < KEY_ROLES:
        DQ += row * S * NH * DK + head * DK
        query_role(
            Q,
            K,
            V,
            DH,
            TAPE,
            C_STATES,
            PARTS,
            DC_STATES,
            DQ,
            heads,
            at,
            block,
            role,
            q_step,
            k_step,
            v_step,
            NH * DV,
            NH * DK,
            S,
            log2_scale,
            DK,
            DV,
            BK,
            BV,
            BM,
            OUT,
            L,
            Y_TILES,
            WITH_RESETS,
            NORMALIZE,
            OPERAND,
            PRECISION,
            STAGES,
        )
    elif role < 2 * KEY_ROLES:
        DK_OUT += row * S * NH * DK + head * DK
        key_role(
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
            role - KEY_ROLES,
            q_step,
            k_step,
            v_step,
            NH * DV,
            NH * DK,
            S,
            log2_scale,
            DK,
            DV,
            BK,
            BV,
            BM,
            OUT,
            L,
            Y_TILES,
            WITH_RESETS,
            NORMALIZE,
            OPERAND,
            PRECISION,
            STAGES,
        )
    else:
        DV_OUT += row * S * NH * DV + head * DV
        value_role(
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
            role - 2 * KEY_ROLES,
            q_step,
            k_step,
            v_step,
            NH * DV,
            NH * DV,
            S,
            log2_scale,
            DK,
            DV,
            BK,
            BV,
            BM,
            OUT,
            L,
            WITH_RESETS,
            OPERAND,
            PRECISION,
            STAGES,
        )
