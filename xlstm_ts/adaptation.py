"""Adaptive conformal intervals: margins that follow how often a stream's own forecasts missed.

After every value, the margin of each interval grows by ``rate`` times what it missed too often, or shrinks by what it
missed too seldom (Gibbs & Candès, 2021, on the margin itself as in Angelopoulos et al., 2023): coverage is met in
the long run, whatever the series does.

Shapes: H trained horizon, Q quantiles, I intervals, the narrowest first.
"""

from typing import NamedTuple

import numpy as np

from xlstm_ts.quantiles import TRAINED_QUANTILES

MIDDLE = len(TRAINED_QUANTILES) // 2
SHARES = 2 * np.array(TRAINED_QUANTILES[MIDDLE + 1 :]) - 1  # that each interval is to cover, (I,)


class Pending(NamedTuple):
    """A forecast whose values have not all come.

    Attributes:
        came: how many of its steps have come.
        quantiles: as issued, (H, Q).
        unit: size of a margin of 1, in units of the data.
    """

    came: int
    quantiles: np.ndarray
    unit: float


class Adaptation(NamedTuple):
    """What a stream has learned about its intervals; a value.

    Attributes:
        margins: (H, I) in units of the series' scale.
        pending: forecasts that are still compared.
    """

    margins: np.ndarray
    pending: tuple[Pending, ...] = ()


def no_adaptation(horizon: int) -> Adaptation:
    """Where a stream begins."""
    return Adaptation(np.zeros((horizon, len(SHARES))))


def widen(adaptation: Adaptation, quantiles: np.ndarray, unit: float) -> np.ndarray:
    """Quantiles (h, Q) with the margins of their steps; steps beyond the trained horizon take the last one's."""
    steps = np.minimum(np.arange(len(quantiles)), len(adaptation.margins) - 1)
    # Wider intervals get no smaller margin, so that quantiles cannot cross.
    margins = unit * np.maximum.accumulate(adaptation.margins[steps], axis=1)
    wide = quantiles.copy()
    wide[:, MIDDLE + 1 :] += margins
    wide[:, :MIDDLE] -= margins[:, ::-1]
    return wide


def issue(adaptation: Adaptation, quantiles: np.ndarray, unit: float) -> Adaptation:
    """Remember a forecast (h, Q) to compare with what comes; a later one from the same row replaces it."""
    issued = Pending(0, quantiles[: len(adaptation.margins)], unit)
    return adaptation._replace(pending=(*(each for each in adaptation.pending if each.came), issued))


def observe(adaptation: Adaptation, value: float, rate: float) -> Adaptation:
    """Compare all pending forecasts with the next value; NaN moves no margin."""
    margins = adaptation.margins.copy()
    for came, quantiles, _ in adaptation.pending:
        if not np.isnan(value):
            below, above = quantiles[came, :MIDDLE][::-1], quantiles[came, MIDDLE + 1 :]
            missed = (value < below) | (value > above)
            margins[came] = np.maximum(0.0, margins[came] + rate * (missed - (1 - SHARES)))
    later = (each._replace(came=each.came + 1) for each in adaptation.pending)
    return Adaptation(margins, tuple(each for each in later if each.came < len(each.quantiles)))
