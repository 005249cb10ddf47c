"""The sLSTM's gates, and one step of its memory, elementwise.

In float32 everything is exact to the last bits. For gates in bfloat16, units of the hardware stand in whose errors are
below the gates' own rounding.
"""

import triton
import triton.language as tl

from ...triton_math import INTERPRETED, reciprocal, sigmoid
from .. import average

CLOSED = tl.constexpr(average.CLOSED)


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """Where not exact, to 2^-11 of itself."""
    if EXACT or INTERPRETED:
        return 2.0 * sigmoid(2.0 * x) - 1.0
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid_and_log(x, EXACT: tl.constexpr):
    """sigmoid(x), exact relative to itself however small, and log(1 + exp(-|x|)).

    Where exact, the latter is 2 artanh(e / (2 + e)), whose series is cut where it is exact to 2e-8: the logarithm of a
    rounded sum would lose what a forget gate near 1 forgets.
    """
    e = tl.exp(-tl.abs(x))
    if EXACT or INTERPRETED:
        s = e * reciprocal(2.0 + e)
        s2 = s * s
        log1p = s * (2.0 + s2 * (0.6666664 + s2 * (0.40007671 + s2 * (0.28233955 + s2 * 0.26867553))))
    else:
        log1p = 0.6931471805599453 * tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=r,r", [1.0 + e], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.where(x > 0, 1.0, e) * reciprocal(1.0 + e), log1p


@triton.jit
def advance(i, f, lam, m, EXPONENTIAL_FORGET: tl.constexpr, EXACT: tl.constexpr):
    """alpha, the slope of log f, and lam and m after the step: ``advance`` and ``advance_relative`` of average.py."""
    if EXPONENTIAL_FORGET:
        slope = tl.full(f.shape, 1.0, tl.float32)
        x = i - m - f - lam
        alpha, log1p = sigmoid_and_log(x, EXACT)
        kept = f + m
        m_after = tl.maximum(kept, i)
        rounded_away = f - (m_after - m)
        kept_lam = lam + rounded_away + tl.maximum(x, 0.0) + log1p
        kept_lam = tl.where(x == float("inf"), i - m_after, kept_lam)  # it was empty
        lam = tl.where(i > kept, tl.maximum(-x, 0.0) + log1p, kept_lam)
    else:
        slope, log1p = sigmoid_and_log(-f, EXACT)
        logf = tl.minimum(f, 0.0) - log1p
        x = i - logf - lam
        alpha, log1p = sigmoid_and_log(x, EXACT)
        lam = tl.where(x < CLOSED, lam + logf, i + (tl.maximum(-x, 0.0) + log1p))
        m_after = tl.maximum(logf + m, i)
    return alpha, slope, lam, m_after
