"""The shipped series are complete."""

import pandas as pd

from xlstm_ts.datasets import load_air_passengers


def test_air_passengers_are_twelve_years_of_months() -> None:
    df = load_air_passengers()

    assert list(df) == ["unique_id", "ds", "y"]
    assert df["ds"].tolist() == pd.date_range("1949-01-01", "1960-12-01", freq="MS").tolist()
    assert (df["y"].iloc[0], df["y"].iloc[-1], df["y"].sum()) == (112, 432, 40363)
