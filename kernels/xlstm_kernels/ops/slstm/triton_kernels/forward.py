"""The sLSTM's loop over time on a GPU, forwards.

A program takes ROWS rows of one head through all steps, for all its units, or for UNITS of them: then the programs of a
head, which must be on the device together, hand h to each other through the output, full of ABSENT before. Rows beyond
B and units beyond DH read zeros, stay finite and are not written. B, S and strides are run-time numbers, for none of
whose values a kernel is compiled.

Shapes: B batch, S sequence, NH heads, DH head dim, D the power of two that holds DH; in a program tiles are
(ROWS, UNITS). The tape is (B, S, NH, parts, DH): alpha, the slope of log f, z and o; y is h / o, or, where that has no
range (float16), the last part.
"""

import triton
import triton.language as tl

from ...triton_math import sigmoid
from .cell import advance, tanh
from .exchange import wait_for
from .products import gates_of, interleaved_matrix, multiply, recurrent_matrix


@triton.jit
def _load_gates(at, stride, here):
    """The input's share of the four gates, as it is stored."""
    i = tl.load(at, mask=here, other=0.0)
    f = tl.load(at + stride, mask=here, other=0.0)
    z = tl.load(at + 2 * stride, mask=here, other=0.0)
    return i, f, z, tl.load(at + 3 * stride, mask=here, other=0.0)


@triton.jit(do_not_specialize=["first", "B", "S", "NH", "gates_b", "gates_s", "gates_g", "gates_n"])
def slstm_forward(
    gates,  # any strides that are multiples of DH, given in units of DH
    weight,
    bias,  # or None
    h_first,  # the state before, or None: the empty memory
    c_first,
    n_first,
    m_first,
    resets,  # (B, S) or None
    lengths,  # (B,) or None
    h_out,
    h_last,
    c_last,
    n_last,
    m_last,
    tape,  # None: keep nothing
    first,  # of this launch's tiles
    B,
    S,
    NH,
    gates_b,
    gates_s,
    gates_g,
    gates_n,
    DH: tl.constexpr,
    D: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    EXPONENTIAL_FORGET: tl.constexpr,
):
    EXACT: tl.constexpr = gates.dtype.element_ty != tl.bfloat16
    SPLIT: tl.constexpr = UNITS < D
    tile = first + tl.program_id(1)
    head, rows = tile % NH, (tile // NH) * ROWS + tl.arange(0, ROWS)
    first_unit = tl.program_id(0) * UNITS
    units, in_batch = first_unit + tl.arange(0, UNITS), rows < B
    here = in_batch[:, None] & (units < DH)[None, :]
    row, unit = rows.to(tl.int64), units[None, :]
    gates_at = gates + (row * gates_b + tl.cast(head, tl.int64) * gates_n)[:, None] * DH + unit
    gate_stride, step_stride = tl.cast(gates_g, tl.int64) * DH, tl.cast(gates_s, tl.int64) * DH
    head_at = (row * NH + head)[:, None] * DH
    state_at = head_at + unit
    if SPLIT:
        all_units = tl.arange(0, D)[None, :]
        all_here = in_batch[:, None] & (all_units < DH)

    h = tl.zeros((ROWS, UNITS), tl.float32)
    y, lam, m = h, h - float("inf"), h - float("inf")
    if h_first is not None:
        h = tl.load(h_first + state_at, mask=here, other=0.0)
        m = tl.load(m_first + state_at, mask=here, other=0.0)
        n = tl.load(n_first + state_at, mask=here, other=0.0)
        empty = n == 0
        n = tl.where(empty, 1.0, n)
        y = tl.load(c_first + state_at, mask=here, other=0.0) / n
        lam = tl.where(empty, -float("inf"), tl.log(n) if EXPONENTIAL_FORGET else m + tl.log(n))
    bias_i = tl.zeros((1, UNITS), tl.float32)
    bias_f, bias_z, bias_o = bias_i, bias_i, bias_i
    if bias is not None:
        bias_at, bias_here = bias + head * DH + unit, unit < DH
        bias_i = tl.load(bias_at, mask=bias_here, other=0.0).to(tl.float32)
        bias_f = tl.load(bias_at + NH * DH, mask=bias_here, other=0.0).to(tl.float32)
        bias_z = tl.load(bias_at + 2 * NH * DH, mask=bias_here, other=0.0).to(tl.float32)
        bias_o = tl.load(bias_at + 3 * NH * DH, mask=bias_here, other=0.0).to(tl.float32)
    if SPLIT:  # a step's inputs are read before the wait for the other programs
        mixing = interleaved_matrix(weight, head, NH, first_unit, DH, D, UNITS)
        operand = tl.zeros((ROWS, D), tl.float32).to(weight.dtype.element_ty)
        if h_first is not None:
            operand = tl.load(h_first + head_at + all_units, mask=all_here, other=0.0).to(weight.dtype.element_ty)
        x_i, x_f, x_z, x_o = _load_gates(gates_at, gate_stride, here)
    else:
        mixing_i = recurrent_matrix(weight, 0, head, NH, first_unit, DH, D, UNITS, True)
        mixing_f = recurrent_matrix(weight, 1, head, NH, first_unit, DH, D, UNITS, True)
        mixing_z = recurrent_matrix(weight, 2, head, NH, first_unit, DH, D, UNITS, True)
        mixing_o = recurrent_matrix(weight, 3, head, NH, first_unit, DH, D, UNITS, True)
    if lengths is not None:
        length = tl.load(lengths + row, mask=in_batch, other=0)
    if resets is not None:
        reset = tl.load(resets + row * S, mask=in_batch, other=0)

    for t in tl.range(0, S, num_stages=STAGES):  # stages: the loads of later steps are under way during this one
        step = tl.cast(t, tl.int64)
        step_at = (row * S + step)[:, None] * NH * DH + head * DH
        if not SPLIT:
            operand = h.to(weight.dtype.element_ty)
            x_i, x_f, x_z, x_o = _load_gates(gates_at + step * step_stride, gate_stride, here)
        if resets is not None:
            forget = (reset != 0)[:, None]
            reset = tl.load(resets + row * S + step + 1, mask=in_batch & (step + 1 < S), other=0)  # of the next step
            operand = tl.where(forget, 0.0, operand).to(operand.dtype)
            h, y = tl.where(forget, 0.0, h), tl.where(forget, 0.0, y)
            lam, m = tl.where(forget, -float("inf"), lam), tl.where(forget, -float("inf"), m)
        if SPLIT:
            i, f, z, o = gates_of(multiply(operand, mixing))
        else:
            i, f = multiply(operand, mixing_i), multiply(operand, mixing_f)
            z, o = multiply(operand, mixing_z), multiply(operand, mixing_o)
        i, f = i + (x_i.to(tl.float32) + bias_i), f + (x_f.to(tl.float32) + bias_f)
        z, o = z + (x_z.to(tl.float32) + bias_z), o + (x_o.to(tl.float32) + bias_o)
        alpha, slope, lam_after, m_after = advance(i, f, lam, m, EXPONENTIAL_FORGET, EXACT)
        z, o = tanh(z, EXACT), sigmoid(o) + 1e-20  # above 0, so that y can be had back as h / o
        y_after = y + alpha * (z - y)
        h_after = o * y_after
        output = h_after
        if lengths is not None:
            own = (step < length)[:, None]
            output = tl.where(own, h_after, 0.0)
            h_after, y_after = tl.where(own, h_after, h), tl.where(own, y_after, y)
            lam_after, m_after = tl.where(own, lam_after, lam), tl.where(own, m_after, m)
        tl.store(h_out + step_at + unit, output.to(h_out.dtype.element_ty), mask=here)
        if tape is not None:
            Y: tl.constexpr = h_out.dtype.element_ty == tl.float16
            parts: tl.constexpr = 4 - EXPONENTIAL_FORGET + Y
            tape_at = tape + (step_at - head * DH) * parts + head * (parts * DH) + unit
            kept: tl.constexpr = tape.dtype.element_ty
            tl.store(tape_at, alpha.to(kept), mask=here)
            tl.store(tape_at + DH, z.to(kept), mask=here)
            tl.store(tape_at + 2 * DH, o.to(kept), mask=here)
            if not EXPONENTIAL_FORGET:
                tl.store(tape_at + 3 * DH, slope.to(kept), mask=here)
            if Y:
                tl.store(tape_at + (parts - 1) * DH, y_after.to(kept), mask=here)
        h, y, lam, m = h_after, y_after, lam_after, m_after
        if SPLIT:
            x_i, x_f, x_z, x_o = _load_gates(gates_at + tl.minimum(step + 1, S - 1) * step_stride, gate_stride, here)
            operand = wait_for(h_out + step_at + all_units, all_here).to(weight.dtype.element_ty)

    tl.store(h_last + state_at, h, mask=here)
    # An empty memory is -inf in both, whose difference would be NaN.
    n = tl.exp(lam if EXPONENTIAL_FORGET else lam - tl.maximum(m, -3.4e38))
    tl.store(c_last + state_at, y * n, mask=here)
    tl.store(n_last + state_at, n, mask=here)
    tl.store(m_last + state_at, m, mask=here)
