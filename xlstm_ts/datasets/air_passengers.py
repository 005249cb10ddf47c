"""Box & Jenkins' airline passengers, the classic series with trend and growing season."""

from importlib.resources import files

import pandas as pd


def load_air_passengers() -> pd.DataFrame:
    """Monthly totals of international airline passengers in thousands, 1949-01 to 1960-12, as a long frame.

    Source: G. E. P. Box, G. M. Jenkins, Time Series Analysis: Forecasting and Control (1976), series G; public domain.

    Returns:
        144 rows with unique_id (always "AirPassengers"), ds (month starts) and y (float).

    >>> load_air_passengers().tail(1)
             unique_id         ds      y
    143  AirPassengers 1960-12-01  432.0
    """
    with files("xlstm_ts.datasets").joinpath("air_passengers.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, parse_dates=["ds"], dtype={"y": "float64"})
