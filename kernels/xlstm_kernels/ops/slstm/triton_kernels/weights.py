"""The gradients of the sLSTM's weights on a GPU: one matrix product over all steps, in parts, and the parts' sum.

Shapes: B batch, S sequence, NH heads, DH head dim, D the power of two that holds DH; a row is a step of the batch,
B * S of them. A part holds what some of the rows give: first the weights' (4, NH, DH, DH), then the bias' (4, NH, DH).
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows_per_part", "B", "S", "NH"])
def slstm_weight_parts(
    dgates,  # (B, S, 4, NH, DH)
    h,  # (B, S, NH, DH)
    h_first,  # (B, NH, DH), or None: zeros
    resets,  # (B, S) or None
    parts,
    rows_per_part,
    B,
    S,
    NH,
    DH: tl.constexpr,
    D: tl.constexpr,
    OUT: tl.constexpr,  # columns of a tile, of the 4 * D of a head's gates
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    operand: tl.constexpr = dgates.dtype.element_ty
    head, part = tl.program_id(1), tl.program_id(2)
    out_tile, in_tile = tl.program_id(0) // (D // IN), tl.program_id(0) % (D // IN)
    column, into = out_tile * OUT + tl.arange(0, OUT), in_tile * IN + tl.arange(0, IN)
    gate, out = column // D, column % D
    out_at, out_here, in_here = (gate * NH + head) * DH + out, out < DH, into < DH
    first, last = part * rows_per_part, tl.minimum((part + 1) * rows_per_part, B * S)
    sums = tl.zeros((OUT, IN), tl.float32)
    bias = tl.zeros((OUT, 16), tl.float32)
    ones = tl.full((ROWS, 16), 1.0, tl.float32).to(operand)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        row, here = rows.to(tl.int64), rows < last
        before = here & (rows % S != 0)
        if resets is not None:
            before &= tl.load(resets + row, mask=here, other=1) == 0
        d = tl.load(
            dgates + row[:, None] * (4 * NH * DH) + out_at[None, :], mask=here[:, None] & out_here[None, :], other=0.0
        )
        x = tl.load(
            h + (row - 1)[:, None] * (NH * DH) + head * DH + into[None, :],
            mask=before[:, None] & in_here[None, :],
            other=0.0,
        )
        d = tl.trans(d)
        sums = tl.dot(d, x, sums, input_precision="ieee")
        bias = tl.dot(d, ones, bias, input_precision="ieee")
    if h_first is not None:  # what came before the first step of the sequences that begin in this part
        for start in range(tl.cdiv(first, S), tl.cdiv(last, S), ROWS):
            sequences = start + tl.arange(0, ROWS)
            row = sequences.to(tl.int64)
            here = sequences < tl.cdiv(last, S)
            kept = here
            if resets is not None:
                kept &= tl.load(resets + row * S, mask=here, other=1) == 0
            d = tl.load(
                dgates + row[:, None] * S * (4 * NH * DH) + out_at[None, :],
                mask=here[:, None] & out_here[None, :],
                other=0.0,
            )
            x = tl.load(
                h_first + row[:, None] * (NH * DH) + head * DH + into[None, :],
                mask=kept[:, None] & in_here[None, :],
                other=0.0,
            )
            sums = tl.dot(tl.trans(d), x.to(operand), sums, input_precision="ieee")
    parts += part.to(tl.int64) * (4 * NH * DH * (DH + 1))
    at = parts + out_at.to(tl.int64)[:, None] * DH + into[None, :]
    tl.store(at, sums, mask=out_here[:, None] & in_here[None, :])
    bias_at = parts + 4 * NH * DH * DH + out_at[:, None] + tl.arange(0, 16)[None, :]
    tl.store(bias_at, bias, mask=out_here[:, None] & (tl.arange(0, 16) == 0)[None, :] & (in_tile == 0))


@triton.jit(do_not_specialize=["num_parts", "num_weights", "size"])
def slstm_weight_sum(parts, dweight, dbias, num_parts, num_weights, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    together: tl.constexpr = 16  # parts whose loads are under way at once
    sums = tl.zeros((together, BLOCK), tl.float32)
    for first in range(0, num_parts, together):
        part = first + tl.arange(0, together)
        part_at = parts + part.to(tl.int64)[:, None] * size + at[None, :]
        sums += tl.load(part_at, mask=(part < num_parts)[:, None] & here[None, :], other=0.0)
    total = tl.sum(sums, axis=0)
    tl.store(dweight + at, total.to(dweight.dtype.element_ty), mask=at < num_weights)
    if dbias is not None:
        tl.store(dbias + at - num_weights, total.to(dbias.dtype.element_ty), mask=here & (at >= num_weights))
