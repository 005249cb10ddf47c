"""Accuracy measures of the M4 competition, on arrays and on long frames."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from xlstm_ts.labels import shown


def smape(actual: ArrayLike, forecast: ArrayLike) -> float:
    """Symmetric mean absolute percentage error, 0 to 200; a step where both are 0 counts as exact.

    >>> smape([100, 100], [100, 300])
    50.0
    """
    y, f = np.asarray(actual, float), np.asarray(forecast, float)
    size = np.abs(y) + np.abs(f)
    return float(np.mean(200 * np.abs(y - f) / np.where(size == 0, 1, size)))


def mase(actual: ArrayLike, forecast: ArrayLike, history: ArrayLike, season_length: int) -> float:
    """Mean absolute error in units of the seasonal-naive error within ``history`` (the values before the forecast).

    Raises:
        ValueError: ``history`` is no longer than one season, or repeats itself exactly, so that there is no unit.

    >>> mase([5.0], [4.0], history=[1, 2, 3, 4], season_length=2)
    0.5
    """
    past = np.asarray(history, float)
    if len(past) <= season_length:
        raise ValueError(f"history must be longer than season_length = {season_length}, got {len(past)} values")
    unit = np.mean(np.abs(past[season_length:] - past[:-season_length]))
    if unit == 0:
        raise ValueError(f"MASE has no unit: history repeats exactly after season_length = {season_length} values")
    return float(np.mean(np.abs(np.asarray(actual, float) - np.asarray(forecast, float))) / unit)


def owa(smape: float, mase: float, *, naive_smape: float, naive_mase: float) -> float:
    """Overall weighted average: the mean of both errors relative to a reference method's (M4: Naive2).

    >>> owa(9.328, 0.893, naive_smape=18.383, naive_mase=2.395)  # the winner on M4 Hourly
    0.44014...
    """
    return 0.5 * (smape / naive_smape + mase / naive_mase)


def accuracy(
    forecast: pd.DataFrame,
    actual: pd.DataFrame,
    history: pd.DataFrame,
    *,
    season_length: int,
    models: Sequence[str],
    id_col: str = "unique_id",
    ds_col: str = "ds",
    y_col: str = "y",
) -> pd.DataFrame:
    """sMAPE and MASE of forecast columns, averaged over series.

    Args:
        forecast: long frame with the columns ``models``.
        actual: long frame with what came true; every row needs a forecast.
        history: long frame with what was known at forecasting.
        season_length: of the seasonal-naive error that scales MASE.
        models: names of the forecast columns to measure.

    Returns:
        One row a model, columns smape and mase.

    Raises:
        ValueError: a row of ``actual`` has no forecast.
    """
    joined = actual.merge(forecast, on=[id_col, ds_col], how="left", validate="one_to_one")
    absent = joined[list(models)].isna().any(axis=1).to_numpy()
    if absent.any():
        row = joined.iloc[int(absent.argmax())]
        raise ValueError(
            f"no forecast for series {shown(row[id_col])} at {ds_col} = {row[ds_col]}: forecast every actual row"
        )
    past = dict(list(history.sort_values(ds_col).groupby(id_col, sort=False)[y_col]))
    errors = {
        model: [
            (smape(g[y_col], g[model]), mase(g[y_col], g[model], past[name], season_length))
            for name, g in joined.groupby(id_col, sort=False)
        ]
        for model in models
    }
    table = {model: np.mean(rows, axis=0) for model, rows in errors.items()}
    return pd.DataFrame.from_dict(table, orient="index", columns=["smape", "mase"])
