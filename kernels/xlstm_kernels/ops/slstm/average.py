"""The sLSTM's memory as a weighted average, the form in which it is computed.

With y = c / n and lam = m + log n the paper's recurrence becomes

    x = i - log f - lam      alpha = sigmoid(x)      lam = i + softplus(-x)      y = y + alpha (z - y)

in which stabiliser and division vanish; an empty memory is lam = -inf, which gives alpha = 1. Computed in this order
it is the more exact form in float32: over 4,096 steps with the forget gate near 1 its error is a sixth of the paper's,
whose log f + m rounds a small log f away.

Where the input gate is as good as closed, i is large and negative, and lam would be rounded as i is: there it grows by
log f alone, which serves i = -inf as well.

A sigmoid forget gate keeps lam small. An exponential one lets it grow without bound, and with it the rounding of c and
n, in which it is an exponent. There lam is log n alone, ``relative`` to m, and takes up what the sum log f + m rounds.
Shapes: every tensor (..., DH), DH head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CLOSED = -40.0  # x below this: what a step writes is below the rounding of float64


def to_average(c: Tensor, n: Tensor, m: Tensor, *, relative: bool) -> tuple[Tensor, Tensor]:
    """(c, n, m) to (y, lam); masked before the division, whose gradient at 0 / 0 would be NaN."""
    empty = n == 0
    n = n.masked_fill(empty, 1.0)
    lam = n.log() if relative else m + n.log()
    return c / n, lam.masked_fill(empty, -torch.inf)


def from_average(y: Tensor, lam: Tensor, m: Tensor, *, relative: bool) -> tuple[Tensor, Tensor]:
    """(y, lam) to (c, n) in units of exp(m); gradients reach y and lam."""
    # An empty memory is -inf in both, whose difference would be NaN.
    n = torch.exp(lam if relative else lam - m.clamp(min=torch.finfo(m.dtype).min))
    return y * n, n


def advance(i: Tensor, logf: Tensor, lam: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step: alpha, and lam and m after it."""
    x = i - logf - lam
    lam_after = torch.where(x < CLOSED, lam + logf, i - F.logsigmoid(x))
    return torch.sigmoid(x), lam_after, torch.maximum(logf + m, i)


def advance_relative(i: Tensor, logf: Tensor, lam: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same step where lam is relative to m."""
    x = i - m - logf - lam
    kept = logf + m
    m_after = torch.maximum(kept, i)
    rounded_away = logf - (m_after - m)
    kept_lam = torch.where(x == torch.inf, i - m_after, lam + rounded_away - F.logsigmoid(-x))  # inf: it was empty
    return torch.sigmoid(x), torch.where(i > kept, -F.logsigmoid(x), kept_lam), m_after
