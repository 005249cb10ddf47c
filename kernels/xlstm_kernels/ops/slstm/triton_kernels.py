"""The sLSTM's loop over time on a GPU, forwards and backwards: a program takes one head of BT rows through all steps.

Shapes: B batch, S sequence, NH heads, DH head dim; in a program tiles are (BT, D), D the power of two that holds DH.
Rows beyond B and units beyond DH read zeros, stay finite and are not written. The tape is (B, S, NH, parts, DH). B, S
and strides are run-time numbers, for none of whose values a kernel is compiled.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # the interpreter knows no PTX


@triton.jit
def _recurrent_matrix(
    weight, gate, DH: tl.constexpr, D: tl.constexpr, TRANSPOSED: tl.constexpr, RESIDENT: tl.constexpr
):
    """A gate's matrix [out, in] of this program's head, or its transpose.

    Where the four do not fit into shared memory together, they are read at every step; volatile, as the compiler would
    otherwise move that before the loop.
    """
    row, column = tl.arange(0, D)[:, None], tl.arange(0, D)[None, :]
    at = weight + (gate * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * DH * DH
    at += column * DH + row if TRANSPOSED else row * DH + column
    return tl.load(at, mask=(row < DH) & (column < DH), other=0.0, volatile=not RESIDENT)


@triton.jit
def _reciprocal(x):
    """1 / x to the last bit but one, for x >= 1: a division adds guards for what cannot be here."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _sigmoid(x):
    return _reciprocal(1.0 + tl.exp(-x))


@triton.jit
def _sigmoid_and_log(x):
    """sigmoid(x) and log(1 + exp(-|x|)) from one exponential, both exact relative to themselves however small.

    log(1 + e) = 2 artanh(e / (2 + e)), whose series is cut where it is exact to 2e-8: the logarithm of a rounded sum
    would lose what a forget gate near 1 forgets.
    """
    e = tl.exp(-tl.abs(x))
    s = e * _reciprocal(2.0 + e)
    s2 = s * s
    log1p = s * (2.0 + s2 * (0.6666664 + s2 * (0.40007671 + s2 * (0.28233955 + s2 * 0.26867553))))
    return tl.where(x > 0, 1.0, e) * _reciprocal(1.0 + e), log1p


@triton.jit
def _advance(i, f, lam, m, EXPONENTIAL_FORGET: tl.constexpr):
    """alpha, the slope of log f, and lam and m after the step: ``advance`` and ``advance_relative`` of average.py."""
    if EXPONENTIAL_FORGET:
        slope = tl.full(f.shape, 1.0, tl.float32)
        x = i - m - f - lam
        alpha, log1p = _sigmoid_and_log(x)
        kept = f + m
        m_after = tl.maximum(kept, i)
        rounded_away = f - (m_after - m)
        kept_lam = lam + rounded_away + tl.maximum(x, 0.0) + log1p
        kept_lam = tl.where(x == float("inf"), i - m_after, kept_lam)  # it was empty
        lam = tl.where(i > kept, tl.maximum(-x, 0.0) + log1p, kept_lam)
    else:
        slope, log1p = _sigmoid_and_log(-f)
        logf = tl.minimum(f, 0.0) - log1p
        x = i - logf - lam
        alpha, log1p = _sigmoid_and_log(x)
        lam = i + (tl.maximum(-x, 0.0) + log1p)
        m_after = tl.maximum(logf + m, i)
    return alpha, slope, lam, m_after


@triton.jit(do_not_specialize=["B", "S", "gates_b", "gates_s", "gates_g", "gates_n"])
def slstm_forward(
    gates,  # any strides that are multiples of DH, given in units of DH
    weight,
    bias,
    state,
    marks,  # (B, S): 0 not a step of the row's own, 1 a step, 2 a step before which the row forgets
    h_out,
    last,
    tape,
    B,
    S,
    gates_b,
    gates_s,
    gates_g,
    gates_n,
    DH: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    STAGES: tl.constexpr,
    RESIDENT: tl.constexpr,
    MARKED: tl.constexpr,
    RECORD: tl.constexpr,
    EXPONENTIAL_FORGET: tl.constexpr,
):
    head, NH = tl.program_id(1), tl.num_programs(1)
    rows, units = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, D)
    in_batch = rows < B
    here = in_batch[:, None] & (units < DH)[None, :]
    row, unit = rows.to(tl.int64), units[None, :]
    gates_at = gates + (row * gates_b + tl.cast(head, tl.int64) * gates_n)[:, None] * DH + unit
    gate_stride, step_stride = tl.cast(gates_g, tl.int64) * DH, tl.cast(gates_s, tl.int64) * DH
    state_at = (row * NH + head)[:, None] * DH + unit
    state_stride = tl.cast(B, tl.int64) * NH * DH

    h = tl.load(state + state_at, mask=here, other=0.0)
    y = tl.load(state + state_stride + state_at, mask=here, other=0.0)
    lam = tl.load(state + 2 * state_stride + state_at, mask=here, other=0.0)
    m = tl.load(state + 3 * state_stride + state_at, mask=here, other=0.0)
    bias_at, bias_here = bias + head * DH + unit, unit < DH
    bias_i = tl.load(bias_at, mask=bias_here, other=0.0)
    bias_f = tl.load(bias_at + NH * DH, mask=bias_here, other=0.0)
    bias_z = tl.load(bias_at + 2 * NH * DH, mask=bias_here, other=0.0)
    bias_o = tl.load(bias_at + 3 * NH * DH, mask=bias_here, other=0.0)
    if RESIDENT:
        weight_i = _recurrent_matrix(weight, 0, DH, D, True, RESIDENT)
        weight_f = _recurrent_matrix(weight, 1, DH, D, True, RESIDENT)
        weight_z = _recurrent_matrix(weight, 2, DH, D, True, RESIDENT)
        weight_o = _recurrent_matrix(weight, 3, DH, D, True, RESIDENT)
    if MARKED:
        mark = tl.load(marks + row * S, mask=in_batch, other=1)

    for t in tl.range(0, S, num_stages=STAGES):  # stages: the loads of later steps are under way during this one
        step = tl.cast(t, tl.int64)
        at = gates_at + step * step_stride
        i = tl.load(at, mask=here, other=0.0).to(tl.float32) + bias_i
        f = tl.load(at + gate_stride, mask=here, other=0.0).to(tl.float32) + bias_f
        z = tl.load(at + 2 * gate_stride, mask=here, other=0.0).to(tl.float32) + bias_z
        o = tl.load(at + 3 * gate_stride, mask=here, other=0.0).to(tl.float32) + bias_o
        if MARKED:
            reset, own = (mark == 2)[:, None], (mark != 0)[:, None]
            mark = tl.load(marks + row * S + step + 1, mask=in_batch & (step + 1 < S), other=1)  # of the next step
            h, y = tl.where(reset, 0.0, h), tl.where(reset, 0.0, y)
            lam, m = tl.where(reset, -float("inf"), lam), tl.where(reset, -float("inf"), m)
        operand = h.to(weight.dtype.element_ty)
        matrix = weight_i if RESIDENT else _recurrent_matrix(weight, 0, DH, D, True, RESIDENT)
        i += tl.dot(operand, matrix, input_precision="ieee")
        matrix = weight_f if RESIDENT else _recurrent_matrix(weight, 1, DH, D, True, RESIDENT)
        f += tl.dot(operand, matrix, input_precision="ieee")
        matrix = weight_z if RESIDENT else _recurrent_matrix(weight, 2, DH, D, True, RESIDENT)
        z += tl.dot(operand, matrix, input_precision="ieee")
        matrix = weight_o if RESIDENT else _recurrent_matrix(weight, 3, DH, D, True, RESIDENT)
        o += tl.dot(operand, matrix, input_precision="ieee")
        alpha, slope, lam_after, m_after = _advance(i, f, lam, m, EXPONENTIAL_FORGET)
        z = 2.0 * _sigmoid(2.0 * z) - 1.0
        o = _sigmoid(o)
        y_after = y + alpha * (z - y)
        h_after = o * y_after
        step_at = (row * S + step) * NH + head
        if RECORD:
            parts: tl.constexpr = 4 if EXPONENTIAL_FORGET else 5
            tape_at = tape + step_at[:, None] * (parts * DH) + unit
            tl.store(tape_at, y_after.to(tape.dtype.element_ty), mask=here)
            tl.store(tape_at + DH, z.to(tape.dtype.element_ty), mask=here)
            tl.store(tape_at + 2 * DH, o.to(tape.dtype.element_ty), mask=here)
            tl.store(tape_at + 3 * DH, alpha.to(tape.dtype.element_ty), mask=here)
            if not EXPONENTIAL_FORGET:
                tl.store(tape_at + 4 * DH, slope.to(tape.dtype.element_ty), mask=here)
        output = h_after
        if MARKED:
            output = tl.where(own, h_after, 0.0)
            h_after, y_after = tl.where(own, h_after, h), tl.where(own, y_after, y)
            lam_after, m_after = tl.where(own, lam_after, lam), tl.where(own, m_after, m)
        tl.store(h_out + step_at[:, None] * DH + unit, output.to(h_out.dtype.element_ty), mask=here)
        h, y, lam, m = h_after, y_after, lam_after, m_after

    tl.store(last + state_at, h, mask=here)
    tl.store(last + state_stride + state_at, y, mask=here)
    tl.store(last + 2 * state_stride + state_at, lam, mask=here)
    tl.store(last + 3 * state_stride + state_at, m, mask=here)


@triton.jit(do_not_specialize=["B", "S", "clip"])
def slstm_backward(
    dh,
    dlast,
    weight,
    tape,
    marks,  # as forwards
    dgates,  # (B, S, NH, 4, DH)
    dstate,
    B,
    S,
    clip,
    DH: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    STAGES: tl.constexpr,
    RESIDENT: tl.constexpr,
    MARKED: tl.constexpr,
    CLIPPED: tl.constexpr,
    EXPONENTIAL_FORGET: tl.constexpr,
):
    head, NH = tl.program_id(1), tl.num_programs(1)
    rows, units = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, D)
    in_batch = rows < B
    here = in_batch[:, None] & (units < DH)[None, :]
    row, unit = rows.to(tl.int64), units[None, :]
    state_at = (row * NH + head)[:, None] * DH + unit
    state_stride = tl.cast(B, tl.int64) * NH * DH
    parts: tl.constexpr = 4 if EXPONENTIAL_FORGET else 5

    # The gradients of h through the recurrent weights, of y and of lam; m has none.
    mixed = tl.load(dlast + state_at, mask=here, other=0.0)
    p = tl.load(dlast + state_stride + state_at, mask=here, other=0.0)
    q = tl.load(dlast + 2 * state_stride + state_at, mask=here, other=0.0)
    if RESIDENT:
        weight_i = _recurrent_matrix(weight, 0, DH, D, False, RESIDENT)
        weight_f = _recurrent_matrix(weight, 1, DH, D, False, RESIDENT)
        weight_z = _recurrent_matrix(weight, 2, DH, D, False, RESIDENT)
        weight_o = _recurrent_matrix(weight, 3, DH, D, False, RESIDENT)
    if MARKED:
        mark = tl.load(marks + row * S + S - 1, mask=in_batch, other=1)

    for back in tl.range(0, S, num_stages=STAGES):
        step = tl.cast(S - 1 - back, tl.int64)
        step_at = (row * S + step) * NH + head
        tape_at = tape + step_at[:, None] * (parts * DH) + unit
        y = tl.load(tape_at, mask=here, other=0.0).to(tl.float32)
        z = tl.load(tape_at + DH, mask=here, other=0.0).to(tl.float32)
        o = tl.load(tape_at + 2 * DH, mask=here, other=0.0).to(tl.float32)
        alpha = tl.load(tape_at + 3 * DH, mask=here, other=0.0).to(tl.float32)
        g = tl.load(dh + step_at[:, None] * DH + unit, mask=here, other=0.0).to(tl.float32) + mixed
        p_before = p + g * o
        di = alpha * (q + p_before * (z - y))
        q_before = q - di
        df = q_before
        if not EXPONENTIAL_FORGET:
            df *= tl.load(tape_at + 4 * DH, mask=here, other=0.0).to(tl.float32)
        toward_z = alpha * p_before
        dz = toward_z * (1.0 - z * z)
        do = g * (o * y) * (1.0 - o)
        p_before -= toward_z
        if MARKED:
            reset, own = (mark == 2)[:, None], (mark != 0)[:, None]
            mark = tl.load(marks + row * S + step - 1, mask=in_batch & (step > 0), other=1)  # of the step before
            di, df = tl.where(own, di, 0.0), tl.where(own, df, 0.0)
            dz, do = tl.where(own, dz, 0.0), tl.where(own, do, 0.0)
        matrix = weight_i if RESIDENT else _recurrent_matrix(weight, 0, DH, D, False, RESIDENT)
        mixed_before = tl.dot(di.to(weight.dtype.element_ty), matrix, input_precision="ieee")
        matrix = weight_f if RESIDENT else _recurrent_matrix(weight, 1, DH, D, False, RESIDENT)
        mixed_before += tl.dot(df.to(weight.dtype.element_ty), matrix, input_precision="ieee")
        matrix = weight_z if RESIDENT else _recurrent_matrix(weight, 2, DH, D, False, RESIDENT)
        mixed_before += tl.dot(dz.to(weight.dtype.element_ty), matrix, input_precision="ieee")
        matrix = weight_o if RESIDENT else _recurrent_matrix(weight, 3, DH, D, False, RESIDENT)
        mixed_before += tl.dot(do.to(weight.dtype.element_ty), matrix, input_precision="ieee")
        dgates_at = dgates + step_at[:, None] * (4 * DH) + unit
        tl.store(dgates_at, di.to(dgates.dtype.element_ty), mask=here)
        tl.store(dgates_at + DH, df.to(dgates.dtype.element_ty), mask=here)
        tl.store(dgates_at + 2 * DH, dz.to(dgates.dtype.element_ty), mask=here)
        tl.store(dgates_at + 3 * DH, do.to(dgates.dtype.element_ty), mask=here)
        if CLIPPED:  # a minimum and a maximum would turn NaN into the bound
            mixed_before = tl.where(mixed_before > clip, clip, mixed_before)
            mixed_before = tl.where(mixed_before < -clip, -clip, mixed_before)
        if MARKED:
            mixed_before, p_before = tl.where(reset, 0.0, mixed_before), tl.where(reset, 0.0, p_before)
            q_before = tl.where(reset, 0.0, q_before)
            mixed_before, p_before = tl.where(own, mixed_before, mixed), tl.where(own, p_before, p)
            q_before = tl.where(own, q_before, q)
        mixed, p, q = mixed_before, p_before, q_before

    tl.store(dstate + state_at, mixed, mask=here)
    tl.store(dstate + state_stride + state_at, p, mask=here)
    tl.store(dstate + 2 * state_stride + state_at, q, mask=here)
    tl.store(dstate + 3 * state_stride + state_at, tl.zeros((BT, D), tl.float32), mask=here)
