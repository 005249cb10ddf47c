"""Quantiles as the columns of a forecast frame."""

from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

from xlstm_ts.quantiles import TRAINED_QUANTILES, check_quantiles, interpolate_quantiles, level_to_quantiles

MODEL = "xLSTM"


def forecast_columns(
    trained: np.ndarray, level: Sequence[float], quantiles: Sequence[float] = ()
) -> dict[str, np.ndarray]:
    """The median, the bounds of central intervals and single quantiles, by column name.

    Args:
        trained: quantiles (..., Q), laid out flat in the columns.
        level: intervals in percent, each in (0, 98].
        quantiles: probabilities, each in [.01, .99].

    Raises:
        ValueError: ``level`` or ``quantiles`` is out of range.

    >>> list(forecast_columns(np.zeros((2, 13)), [80]))
    ['xLSTM', 'xLSTM-lo-80', 'xLSTM-hi-80']
    """
    if not isinstance(level, Iterable) or isinstance(level, str):
        raise ValueError(f"level must be a list of percentages, such as [80], got {level!r}")
    columns = {MODEL: trained[..., len(TRAINED_QUANTILES) // 2].ravel()}
    for value in sorted(set(level)):
        low, high = np.moveaxis(interpolate_quantiles(trained, level_to_quantiles(value)), -1, 0)
        columns |= {f"{MODEL}-lo-{value:g}": low.ravel(), f"{MODEL}-hi-{value:g}": high.ravel()}
    check_quantiles(quantiles)
    wanted = sorted(set(quantiles))
    values = np.moveaxis(interpolate_quantiles(trained, wanted), -1, 0) if wanted else ()
    return columns | {f"{MODEL}-q-{100 * p:g}": value.ravel() for p, value in zip(wanted, values, strict=True)}


def forecast_frame(
    rows: pd.DataFrame, trained: np.ndarray, level: Sequence[float], quantiles: Sequence[float] = ()
) -> pd.DataFrame:
    """The rows of a frame, beside the columns of their forecasts: at once, as pandas takes long to add one."""
    keys = {name: rows[name].array for name in rows.columns}
    return pd.DataFrame({**keys, **forecast_columns(trained, level, quantiles)}, copy=False)


def normal_score(trained: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Where values (M,) lie in their forecasts (M, Q), as scores of a standard normal distribution; NaN stays."""
    grid = np.array([NormalDist().inv_cdf(p) for p in TRAINED_QUANTILES])
    right = np.clip((trained < actual[:, None]).sum(1), 1, len(grid) - 1)
    rows = np.arange(len(actual))
    low, high = trained[rows, right - 1], trained[rows, right]
    share = (actual - low) / np.maximum(high - low, np.finfo(float).tiny)
    return grid[right - 1] + share * (grid[right] - grid[right - 1])
