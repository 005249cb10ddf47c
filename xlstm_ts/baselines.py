"""Forecasts that any model must beat."""

import numpy as np
import pandas as pd

from xlstm_ts.frames import Columns, future_frame, read_panel


def seasonal_naive(
    df: pd.DataFrame,
    *,
    horizon: int,
    season_length: int,
    id_col: str = "unique_id",
    ds_col: str = "ds",
    y_col: str = "y",
) -> pd.DataFrame:
    """Repeat each series' last season.

    Args:
        df: long frame of at least ``season_length`` values of every series.
        horizon: steps ahead.
        season_length: steps of a season; 1 repeats the last value.

    Returns:
        Long frame with the id and time columns and the forecast in "SeasonalNaive".

    Raises:
        ValueError: the frame is not as ``xlstm_ts.frames.read_panel`` asks, or a series is shorter than a season.

    >>> df = pd.DataFrame({"unique_id": "a", "ds": [1, 2, 3], "y": [7.0, 8.0, 9.0]})
    >>> seasonal_naive(df, horizon=3, season_length=2)["SeasonalNaive"].tolist()
    [8.0, 9.0, 8.0]
    """
    for name, value in (("horizon", horizon), ("season_length", season_length)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    columns = Columns(id_col, ds_col, y_col)
    panel = read_panel(df, columns)
    panel.require_length(season_length, "seasonal_naive")
    offsets = np.arange(horizon) % season_length - season_length
    values = panel.values[np.cumsum(panel.lengths)[:, None] + offsets]  # (N, H)
    future = future_frame(panel.ids, panel.last_ds, panel.frequency, horizon, columns)
    return future.assign(SeasonalNaive=values.ravel())
