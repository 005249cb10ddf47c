"""One number for a forecast of many series, larger is better, as scikit-learn's searches ask for."""

import numpy as np
import pandas as pd

from xlstm_ts.frames import Columns
from xlstm_ts.outputs import MODEL


def scaled_score(forecast: pd.DataFrame, actual: pd.DataFrame, unit: pd.Series, columns: Columns) -> float:
    """The negative mean absolute error in units of each series, averaged over series; 0 is perfect.

    Args:
        forecast: frame with the point forecast.
        actual: long frame; rows without a value do not count.
        unit: for each series, the size of an error that counts as 1.
        columns: names of the columns.
    """
    joined = actual.dropna(subset=[columns.y]).merge(forecast, on=[columns.id, columns.ds], how="inner")
    error = (joined[columns.y] - joined[MODEL]).abs() / joined[columns.id].map(unit)
    return -float(error.groupby(joined[columns.id]).mean().mean())


def naive_unit(values: np.ndarray, season_length: int) -> float:
    """The mean error of seasonal naive within a series; of naive where it is short; 1 where it never errs."""
    for season in (season_length, 1):
        errors = np.abs(values[season:] - values[:-season])
        errors = errors[np.isfinite(errors)]
        if errors.any():
            return float(errors.mean())
    return 1.0
