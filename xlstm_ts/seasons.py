"""Seasons that integer times do not tell, found in the values themselves.

Shapes: N series, T values in all, K lags.
"""

from collections.abc import Callable

import numpy as np

LONGEST = 1000  # steps
LISTENED = 256  # series, evenly spread: more change nothing and cost time
# Least correlation that counts. Levels come first, as changes of a smooth season drown in noise; they must repeat well,
# because a random walk resembles itself, too. Its changes do not: for them, 4 standard errors of noise are enough.
LEAST_OF_LEVELS, LEAST_OF_CHANGES, STANDARD_ERRORS = 0.5, 0.1, 4.0
RISE = 0.05
# Of the strongest: half-day echoes of a day stay below.
SHARE_OF_STRONGEST = 0.7


def detect_season_lengths(values: np.ndarray, lengths: np.ndarray) -> tuple[int, ...]:
    """The season that the series share, and a longer one where a multiple of it stands out, as a week of days does.

    Args:
        values: (T,) the series, end to end; NaN is a missing value.
        lengths: (N,) values of each.

    Returns:
        Lengths in steps, the shortest first; ``(1,)`` where nothing repeats.

    >>> hours = np.arange(500)
    >>> detect_season_lengths(np.sin(2 * np.pi * hours / 24), np.array([500]))
    (24,)
    """
    for view, least in ((detrended, LEAST_OF_LEVELS), (np.diff, LEAST_OF_CHANGES)):
        correlation, error = shared_autocorrelation(values, lengths, view)
        noise = STANDARD_ERRORS * error
        peaks = [lag for lag in local_maxima(correlation) if lag > 1 and correlation[lag] > max(least, noise)]
        if peaks:
            strongest = correlation[peaks].max()
            season = int(next(lag for lag in peaks if correlation[lag] >= SHARE_OF_STRONGEST * strongest))
            return (season, *longer_season(correlation[season::season], season, rise=max(RISE, noise)))
    return (1,)


def longer_season(multiples: np.ndarray, season: int, *, rise: float) -> tuple[int, ...]:
    """The multiple of ``season`` whose correlation rises most above those of smaller ones, if by ``rise``, or none."""
    rising = [int(k) for k in local_maxima(multiples) if multiples[k] - multiples[:k].min() > rise]
    return (season * (1 + max(rising, key=lambda k: multiples[k])),) if rising else ()


def without_missing(values: np.ndarray) -> np.ndarray:
    """Values with straight lines where some are missing (NaN); nothing where all are."""
    seen = np.isfinite(values)
    if seen.all() or not seen.any():
        return values if seen.any() else values[:0]
    steps = np.arange(len(values))
    return np.interp(steps, steps[seen], values[seen])


def detrended(values: np.ndarray) -> np.ndarray:
    """Values less their straight line."""
    time = np.arange(len(values)) - (len(values) - 1) / 2
    centred = values - values.mean() if len(values) else values
    return centred - time * (time @ centred) / max(time @ time, 1.0)


def shared_autocorrelation(
    values: np.ndarray, lengths: np.ndarray, view: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, float]:
    """Mean autocorrelation (K,) of the series' ``view`` at lags 0, 1, ..., and its standard error in pure noise.

    Lags end where fewer than half of the series show three cycles.
    """
    stops = np.cumsum(lengths)
    starts = np.maximum(stops - lengths, stops - 4 * LONGEST)
    chosen = np.unique(np.linspace(0, len(lengths) - 1, min(len(lengths), LISTENED)).astype(int))
    rows = [autocorrelation(view(without_missing(values[starts[n] : stops[n]]))) for n in chosen]
    rows = [row for row in rows if len(row)]
    if not rows:
        return np.zeros(1), np.inf
    total, count = np.zeros(LONGEST + 1), np.zeros(LONGEST + 1)
    for row in rows:
        total[: len(row)] += row
        count[: len(row)] += 1
    shown = count >= len(rows) / 2
    # 1.5: changes of white noise are correlated (Bartlett: 1.5 times the variance), long lags have fewer pairs (1.5).
    return total[shown] / count[shown], float(1.5 * (stops - starts)[chosen].sum() ** -0.5)


def autocorrelation(row: np.ndarray) -> np.ndarray:
    """Autocorrelation up to a third of the length, at most to ``LONGEST``; empty where nothing changes."""
    size, lags = len(row), min(len(row) // 3, LONGEST)
    if lags < 2 or np.ptp(row) <= 1e-9 * np.abs(row).max():
        return np.zeros(0)
    centred = row - row.mean()
    spectrum = np.fft.rfft(centred, 2 * size)  # padded, so that the ends do not meet
    products = np.fft.irfft(np.abs(spectrum) ** 2)[: lags + 1]
    return products / (size - np.arange(lags + 1)) / np.square(centred).mean()


def local_maxima(row: np.ndarray) -> np.ndarray:
    """Positions inside a row that exceed both neighbours."""
    return 1 + np.flatnonzero((row[1:-1] > row[:-2]) & (row[1:-1] >= row[2:]))
