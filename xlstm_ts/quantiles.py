"""Prediction levels and the quantiles that the network is trained on."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

# Denser than the usual nine: tails for 98 % intervals, deciles for interpolation.
TRAINED_QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def level_to_quantiles(level: float) -> tuple[float, float]:
    """The probabilities that bound a central interval of ``level`` percent.

    Raises:
        ValueError: ``level`` is outside what the trained quantiles cover.

    >>> level_to_quantiles(80)
    (0.1, 0.9)
    """
    widest = 100 * (TRAINED_QUANTILES[-1] - TRAINED_QUANTILES[0])
    if not 0 < level <= widest:
        raise ValueError(f"level must be in (0, {widest:g}] percent, got {level}")
    tail = round((100 - level) / 200, 10)
    return tail, round(1 - tail, 10)


def check_quantiles(quantiles: Sequence[float]) -> None:
    """Raise ValueError for a probability outside what the trained quantiles cover."""
    low, high = TRAINED_QUANTILES[0], TRAINED_QUANTILES[-1]
    wrong = [p for p in quantiles if not low <= p <= high]
    if wrong:
        raise ValueError(f"quantiles must be probabilities in [{low}, {high}], got {wrong[0]}")


def interpolate_quantiles(trained: np.ndarray, probabilities: Sequence[float]) -> np.ndarray:
    """Quantiles (..., len(probabilities)) from the trained ones (..., Q).

    Linear in the normal score, which bends between trained quantiles as a bell-shaped distribution does.
    """
    score = NormalDist().inv_cdf
    grid = np.array([score(p) for p in TRAINED_QUANTILES])
    wanted = np.array([score(p) for p in probabilities])
    right = np.clip(np.searchsorted(grid, wanted), 1, len(grid) - 1)
    share = (wanted - grid[right - 1]) / (grid[right] - grid[right - 1])
    return trained[..., right - 1] * (1 - share) + trained[..., right] * share
