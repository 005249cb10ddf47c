"""Products of eight rows with the recurrent weights, which stay in shared memory.

A product on tensor cores has sixteen rows, of which a thread holds r and r + 8. So the left half of a row's operand is
put over the right half, the weights come as an upper and a lower half, and of either product the rows that count are
taken: in registers.

Shapes: NH heads, DH head dim, D the power of two that holds DH, K and N an operand's and a product's columns.
"""

import triton
import triton.language as tl


@triton.jit
def recurrent_matrix(
    weight, gate, head, NH, first_unit, DH: tl.constexpr, D: tl.constexpr, UNITS: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """A gate's [out, in] for UNITS of its units from ``first_unit`` on, upper and lower half: the transpose of these
    rows, [in, out], or the rows of the transpose, [out, in] for these inputs."""
    all_units, units = tl.arange(0, D // 2)[:, None], first_unit + tl.arange(0, UNITS)[None, :]
    weight += (gate * NH + head).to(tl.int64) * DH * DH
    at = units * DH + all_units if TRANSPOSED else all_units * DH + units
    upper = tl.load(weight + at, mask=(all_units < DH) & (units < DH), other=0.0)
    all_units += D // 2
    at = units * DH + all_units if TRANSPOSED else all_units * DH + units
    return upper, tl.load(weight + at, mask=(all_units < DH) & (units < DH), other=0.0)


@triton.jit
def multiply(x, matrix):
    """(8, K) times (K, N), of which there are both halves, in float32."""
    upper, lower = matrix
    K: tl.constexpr = x.shape[1] // 2
    N: tl.constexpr = upper.shape[1]
    if x.dtype == tl.float32:
        left, right = tl.split(tl.permute(tl.reshape(x, (8, 2, K)), (0, 2, 1)))
        return tl.dot(right, lower, tl.dot(left, upper, input_precision="ieee"), input_precision="ieee")
    stacked = tl.reshape(tl.permute(tl.reshape(x, (8, 2, K)), (1, 0, 2)), (16, K))
    left, _ = tl.split(tl.permute(tl.reshape(tl.dot(stacked, upper), (2, 8, N)), (1, 2, 0)))
    _, right = tl.split(tl.permute(tl.reshape(tl.dot(stacked, lower), (2, 8, N)), (1, 2, 0)))
    return left + right


@triton.jit
def interleaved_matrix(weight, head, NH, first_unit, DH: tl.constexpr, D: tl.constexpr, UNITS: tl.constexpr):
    """The four gates' ``recurrent_matrix``, transposed, as one with columns (gate // 2, unit, gate % 2)."""
    column = tl.arange(0, 4 * UNITS)[None, :]
    gate, units = column // (2 * UNITS) * 2 + column % 2, first_unit + column // 2 % UNITS
    at = weight + ((gate * NH + head).to(tl.int64) * DH + units) * DH
    into = tl.arange(0, D // 2)[:, None]
    upper = tl.load(at + into, mask=(into < DH) & (units < DH), other=0.0)
    into += D // 2
    return upper, tl.load(at + into, mask=(into < DH) & (units < DH), other=0.0)


@triton.jit
def gates_of(x):
    """i, f, z and o of a product with ``interleaved_matrix``: a thread that holds one holds the others too."""
    UNITS: tl.constexpr = x.shape[1] // 4
    i_and_z, f_and_o = tl.split(tl.permute(tl.reshape(x, (8, 2, UNITS, 2)), (0, 2, 1, 3)))
    i, z = tl.split(i_and_z)
    f, o = tl.split(f_and_o)
    return i, f, z, o


@triton.jit
def stacked_matrix(weight, head, NH, first_unit, DH: tl.constexpr, D: tl.constexpr, UNITS: tl.constexpr):
    """The four gates' [out, in] for UNITS inputs from ``first_unit`` on, (4, D, UNITS), upper and lower half."""
    gate, units = tl.arange(0, 4)[:, None, None], first_unit + tl.arange(0, UNITS)[None, None, :]
    at = weight + (gate * NH + head).to(tl.int64) * DH * DH + units
    out = tl.arange(0, D // 2)[None, :, None]
    upper = tl.load(at + out * DH, mask=(out < DH) & (units < DH), other=0.0)
    out += D // 2
    return upper, tl.load(at + out * DH, mask=(out < DH) & (units < DH), other=0.0)


@triton.jit
def multiply_stacked(x, matrix):
    """The sum of ``multiply`` over four gates, each in a warp of its own; x is (4, 16, K / 2), left half over right."""
    upper, lower = matrix
    K: tl.constexpr = x.shape[2]
    N: tl.constexpr = upper.shape[2]
    if x.dtype == tl.float32:
        left, right = tl.split(tl.permute(tl.reshape(x, (4, 2, 8, K)), (0, 2, 3, 1)))
        product = tl.dot(right, lower, tl.dot(left, upper, input_precision="ieee"), input_precision="ieee")
        return tl.sum(product, axis=0)
    product = tl.dot(x, upper)
    left, _ = tl.split(tl.permute(tl.reshape(product, (4, 2, 8, N)), (0, 2, 3, 1)))
    product = tl.dot(x, lower)
    _, right = tl.split(tl.permute(tl.reshape(product, (4, 2, 8, N)), (0, 2, 3, 1)))
    return tl.sum(left + right, axis=0)
