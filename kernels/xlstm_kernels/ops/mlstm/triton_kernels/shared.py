"""What the mLSTM's Triton kernels share: logarithms to base 2, segments between resets, tiles.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, L chunk size, NC chunks; BK / BV / BM tiles of
keys, values and steps. Logarithms are in LOGS: float64 where float32 operands ask for more than float32 differences of
long sums.

What a step t reads of step s of its chunk has weight exp2(a_s - M_t), of the state before the chunk exp2(m - M_t), with
b the sum of log f within the chunk, a = i - b, and M_t the maximum of m and a up to t. The sum b_t itself cancels in
all but the floor exp2(-b_t - M_t), the paper's 1. Backward, den_t = max(|l_t|, floor) + epsilon joins the exponent:
with U_t = M_t + log2 den_t all weights are exp2(a_s - U_t). The derivation is in kernels/README.md.
"""

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-6)  # as in constants.py, whose plain numbers kernels cannot read
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FORGOTTEN = tl.constexpr(-1.4426950408889634e5)  # of log2 f: less would take from the sum all that is added later
LOWEST = tl.constexpr(-3.0e38)  # subtracted where nothing was ever written: -inf less -inf would be NaN


@triton.jit
def largest(x, y):
    return tl.maximum(x, y)


@triton.jit
def largest_of_segment(segment_x, x, segment_y, y):
    return segment_y, tl.where(segment_x == segment_y, tl.maximum(x, y), y)


@triton.jit
def sum_of_segment(segment_x, x, segment_y, y):
    return segment_y, tl.where(segment_x == segment_y, x + y, y)


@triton.jit
def power(exponent):
    return tl.exp2(exponent.to(tl.float32))


@triton.jit
def log2_sigmoid(f):
    """log2 of sigmoid(f), exact relative to itself however near 1 the gate is.

    log(1 + e) = 2 artanh(e / (2 + e)), whose series is cut where it is exact to 2e-8: the logarithm of a rounded sum
    would lose what a forget gate near 1 forgets.
    """
    e = tl.exp2(-tl.abs(f) * LOG2E)
    s = e / (2.0 + e)
    s2 = s * s
    log1p = s * (2.0 + s2 * (0.6666664 + s2 * (0.40007671 + s2 * (0.28233955 + s2 * 0.26867553))))
    return (tl.minimum(f, 0.0) - log1p) * LOG2E


@triton.jit
def sigmoid_of_negative(f):
    return 1.0 / (1.0 + tl.exp2(f * LOG2E))


@triton.jit
def left_of(S, first):
    """The steps from ``first`` on; small, as what is a number of each element should be."""
    return (S - first).to(tl.int32)


@triton.jit
def load_gates(I, F, offsets, inside, LOGS: tl.constexpr):  # noqa: E741
    """log2 of the input and of the forget gate, and f; outside of the sequence nothing is written or forgotten."""
    i = tl.load(I + offsets, mask=inside, other=-float("inf")).to(LOGS) * LOG2E
    f = tl.load(F + offsets, mask=inside, other=float("inf")).to(tl.float32)
    logf = log2_sigmoid(f)
    return i, tl.where(logf < FORGOTTEN, FORGOTTEN, logf).to(LOGS), f


@triton.jit
def load_segments(RESETS, first, offsets, inside, axis: tl.constexpr, WITH_RESETS: tl.constexpr):
    """The number of resets in the chunk up to each step: two steps see each other only where it is the same."""
    if WITH_RESETS:
        reset = tl.load(RESETS + first + offsets, mask=inside, other=0)
        segment = tl.cumsum((reset != 0).to(tl.int32), axis)
    else:
        segment = tl.zeros(inside.shape, tl.int32)
    return segment


@triton.jit
def of_segment_0(x, segment, WITH_RESETS: tl.constexpr):
    """A logarithm of the state before the chunk, which a reset hides from the steps (or the state) after it."""
    if WITH_RESETS:
        x = tl.where(segment == 0, x, -float("inf"))
    return x


@triton.jit
def load_m(M_FIRST, at, RESETS, row, S, WITH_RESETS: tl.constexpr):
    """m of the state that is given, to base e; a reset at the first step forgets it, whatever it is."""
    m = tl.load(M_FIRST + at)
    if WITH_RESETS:
        m = tl.where(tl.load(RESETS + row * S) != 0, -float("inf"), m)
    return m


@triton.jit
def of_unit(x, m):
    """Some of a state whose unit is exp(m): nothing where that is 0, even of NaN."""
    return tl.where(m == -float("inf"), 0.0, x)


@triton.jit
def from_natural(m_natural, LOGS: tl.constexpr):
    return m_natural.to(LOGS) * LOG2E


@triton.jit
def to_natural(m):
    """m in the form that leaves the kernel: to base e, rounded to float32, for every chunk alike."""
    return (m * LN2).to(tl.float32)


@triton.jit
def closing_exponent(m_after, forgotten, most):
    """What the logarithms of a chunk's weights, of which ``most`` is the largest, lack to the unit of the state after.

    That unit is exp2(m_after), which is forgotten + most but for rounding: the rounding goes into the weights.
    """
    return tl.where(most == -float("inf"), 0.0, (forgotten - (m_after - most)) - most)


@triton.jit
def finish(normaliser, floor, scale, NORMALIZE: tl.constexpr):
    """Scaled normaliser, denominator, and what turns a numerator of unscaled queries into h."""
    normaliser *= scale
    denominator = floor
    if NORMALIZE:
        denominator = tl.maximum(tl.abs(normaliser), floor) + EPSILON
    return normaliser, denominator, scale / denominator


@triton.jit
def slope(normaliser, floor):
    """Minus the denominator's slope over the normaliser."""
    return tl.where(tl.abs(normaliser) > floor, tl.where(normaliser > 0, -1.0, 1.0), 0.0)


@triton.jit
def _tile(first, stride, rows, columns, S, width: tl.constexpr):
    """Where a (rows, columns) tile of a (S, width) matrix is, behind its row ``first``, and what of it is inside."""
    inside = (rows < left_of(S, first))[:, None]
    if width // columns.shape[0] * columns.shape[0] != width:
        inside = inside & (columns < width)[None, :]
    return rows[:, None] * stride + columns[None, :], inside


@triton.jit
def load_tile(ROWS, first, stride, rows, columns, S, width: tl.constexpr):
    """A tile from row ``first`` on; zero outside of the matrix."""
    offsets, inside = _tile(first, stride, rows, columns, S, width)
    return tl.load(ROWS + first * stride + offsets, mask=inside, other=0.0)


@triton.jit
def store_tile(ROWS, x, first, stride, rows, columns, S, width: tl.constexpr):
    offsets, inside = _tile(first, stride, rows, columns, S, width)
    tl.store(ROWS + first * stride + offsets, x.to(ROWS.dtype.element_ty), mask=inside)


@triton.jit
def state_tile(keys, values, DK: tl.constexpr, DV: tl.constexpr):
    """Offsets and mask of a tile of a (DK, DV) state."""
    return keys[:, None] * DV + values[None, :], (keys < DK)[:, None] & (values < DV)[None, :]
