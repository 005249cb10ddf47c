"""The sLSTM's loop over time on a GPU, backwards; programs and tape are laid out as in forward.py.

Programs that share a head hand the gates' gradients to each other through the output, full of ABSENT before.

Shapes: B batch, S sequence, NH heads, DH head dim, D the power of two that holds DH; in a program tiles are
(ROWS, UNITS).
"""

import triton
import triton.language as tl

from ...triton_math import reciprocal
from .exchange import wait_for
from .products import multiply, multiply_stacked, recurrent_matrix, stacked_matrix


@triton.jit
def _load_step(dh, h, tape, step_at, head, unit, here, DH: tl.constexpr, EXPONENTIAL_FORGET: tl.constexpr):
    """alpha, z, o, the slope of log f, y and dh of a step."""
    Y: tl.constexpr = h.dtype.element_ty == tl.float16
    parts: tl.constexpr = 4 - EXPONENTIAL_FORGET + Y
    tape_at = tape + step_at * parts + head * (parts * DH) + unit
    alpha = tl.load(tape_at, mask=here, other=0.0)
    z = tl.load(tape_at + DH, mask=here, other=0.0)
    o = tl.load(tape_at + 2 * DH, mask=here, other=1.0)
    slope = alpha
    if not EXPONENTIAL_FORGET:
        slope = tl.load(tape_at + 3 * DH, mask=here, other=0.0)
    if Y:
        y = tl.load(tape_at + (parts - 1) * DH, mask=here, other=0.0)
    else:
        y = tl.load(h + step_at + head * DH + unit, mask=here, other=0.0)
    return alpha, z, o, slope, y, tl.load(dh + step_at + head * DH + unit, mask=here, other=0.0)


@triton.jit(do_not_specialize=["first", "B", "S", "NH", "clip"])
def slstm_backward(
    dh,
    dh_last,  # the gradients of the last state, or None: all are zero
    dc_last,
    dn_last,
    weight,
    h,
    tape,
    c_first,  # the state before, or None: the empty memory
    n_first,
    c_last,
    n_last,
    resets,
    lengths,
    dgates,  # (B, S, 4, NH, DH)
    dh_first,
    dc_first,
    dn_first,
    first,
    B,
    S,
    NH,
    clip,
    DH: tl.constexpr,
    D: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    CLIPPED: tl.constexpr,
    EXPONENTIAL_FORGET: tl.constexpr,
):
    SPLIT: tl.constexpr = UNITS < D
    operand: tl.constexpr = weight.dtype.element_ty
    tile = first + tl.program_id(1)
    head, rows = tile % NH, (tile // NH) * ROWS + tl.arange(0, ROWS)
    first_unit = tl.program_id(0) * UNITS
    units, in_batch = first_unit + tl.arange(0, UNITS), rows < B
    here = in_batch[:, None] & (units < DH)[None, :]
    row, unit = rows.to(tl.int64), units[None, :]
    state_at = (row * NH + head)[:, None] * DH + unit
    if SPLIT:  # all gates and units, as ``multiply_stacked`` takes them
        stacked = tl.arange(0, 2 * ROWS)
        all_rows = (tile // NH) * ROWS + stacked % ROWS
        all_units = (stacked // ROWS * (D // 2))[None, :, None] + tl.arange(0, D // 2)[None, None, :]
        all_here = (all_rows < B)[None, :, None] & (all_units < DH)
        all_at = dgates + (all_rows.to(tl.int64) * S)[None, :, None] * (4 * NH * DH) + head * DH
        all_at += tl.arange(0, 4)[:, None, None] * NH * DH + all_units

    # The gradients of h through the recurrent weights, of y and of lam; m has none.
    mixed = tl.zeros((ROWS, UNITS), tl.float32)
    p, q = mixed, mixed
    if dh_last is not None:
        mixed = tl.load(dh_last + state_at, mask=here, other=0.0)
        dc = tl.load(dc_last + state_at, mask=here, other=0.0)
        n = tl.load(n_last + state_at, mask=here, other=0.0)
        p = dc * n
        q = dc * tl.load(c_last + state_at, mask=here, other=0.0)
        q += n * tl.load(dn_last + state_at, mask=here, other=0.0)
    if SPLIT:  # a step's inputs are read before the wait for the other programs
        mixing = stacked_matrix(weight, head, NH, first_unit, DH, D, UNITS)
        step_at = (row * S + S - 1)[:, None] * NH * DH
        alpha, z, o, slope, y, g = _load_step(dh, h, tape, step_at, head, unit, here, DH, EXPONENTIAL_FORGET)
    else:
        mixing_i = recurrent_matrix(weight, 0, head, NH, first_unit, DH, D, UNITS, False)
        mixing_f = recurrent_matrix(weight, 1, head, NH, first_unit, DH, D, UNITS, False)
        mixing_z = recurrent_matrix(weight, 2, head, NH, first_unit, DH, D, UNITS, False)
        mixing_o = recurrent_matrix(weight, 3, head, NH, first_unit, DH, D, UNITS, False)
    if lengths is not None:
        length = tl.load(lengths + row, mask=in_batch, other=0)
    if resets is not None:
        reset = tl.load(resets + row * S + S - 1, mask=in_batch, other=0)
    for back in tl.range(0, S, num_stages=STAGES):
        step = tl.cast(S - 1 - back, tl.int64)
        step_at = (row * S + step)[:, None] * NH * DH
        if not SPLIT:
            alpha, z, o, slope, y, g = _load_step(dh, h, tape, step_at, head, unit, here, DH, EXPONENTIAL_FORGET)
        a, z32, o32, y32 = alpha.to(tl.float32), z.to(tl.float32), o.to(tl.float32), y.to(tl.float32)
        hidden = y32
        if h.dtype.element_ty == tl.float16:
            hidden = o32 * y32
        else:
            y32 *= reciprocal(o32)
        total = g.to(tl.float32) + mixed
        p_before = p + total * o32
        di = a * (q + p_before * (z32 - y32))
        q_before = q - di
        df = q_before
        if not EXPONENTIAL_FORGET:
            df *= slope.to(tl.float32)
        toward_z = a * p_before
        dz = toward_z * (1.0 - z32 * z32)
        do = total * hidden * (1.0 - o32)
        p_before -= toward_z
        if lengths is not None:
            own = (step < length)[:, None]
            di, df = tl.where(own, di, 0.0), tl.where(own, df, 0.0)
            dz, do = tl.where(own, dz, 0.0), tl.where(own, do, 0.0)
        kept: tl.constexpr = dgates.dtype.element_ty
        dgates_at = dgates + step_at * 4 + head * DH
        tl.store(dgates_at + unit, di.to(kept), mask=here)
        tl.store(dgates_at + unit + NH * DH, df.to(kept), mask=here)
        tl.store(dgates_at + unit + 2 * NH * DH, dz.to(kept), mask=here)
        tl.store(dgates_at + unit + 3 * NH * DH, do.to(kept), mask=here)
        if SPLIT:
            next_at = (row * S + tl.maximum(step - 1, 0))[:, None] * NH * DH
            alpha, z, o, slope, y, g = _load_step(dh, h, tape, next_at, head, unit, here, DH, EXPONENTIAL_FORGET)
            all_dgates = wait_for(all_at + step * (4 * NH * DH), all_here)
            mixed_before = multiply_stacked(all_dgates.to(operand), mixing)
        else:
            mixed_before = multiply(di.to(operand), mixing_i) + multiply(df.to(operand), mixing_f)
            mixed_before += multiply(dz.to(operand), mixing_z) + multiply(do.to(operand), mixing_o)
        if CLIPPED:  # a minimum and a maximum would turn NaN into the bound
            mixed_before = tl.where(mixed_before > clip, clip, mixed_before)
            mixed_before = tl.where(mixed_before < -clip, -clip, mixed_before)
        if resets is not None:
            forget = (reset != 0)[:, None]
            reset = tl.load(resets + row * S + step - 1, mask=in_batch & (step > 0), other=0)  # of the step before
            mixed_before, p_before = tl.where(forget, 0.0, mixed_before), tl.where(forget, 0.0, p_before)
            q_before = tl.where(forget, 0.0, q_before)
        if lengths is not None:
            mixed_before, p_before = tl.where(own, mixed_before, mixed), tl.where(own, p_before, p)
            q_before = tl.where(own, q_before, q)
        mixed, p, q = mixed_before, p_before, q_before

    if c_first is not None:
        n = tl.load(n_first + state_at, mask=here, other=0.0)
        empty = n == 0
        n = tl.where(empty, 1.0, n)
        y = tl.load(c_first + state_at, mask=here, other=0.0) / n
        tl.store(dh_first + state_at, mixed, mask=here)
        tl.store(dc_first + state_at, p / n, mask=here)
        tl.store(dn_first + state_at, tl.where(empty, 0.0, (q - p * y) / n), mask=here)
