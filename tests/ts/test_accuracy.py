"""The default configuration forecasts the shipped real series."""

from xlstm_ts import accuracy, seasonal_naive, xLSTMForecaster
from xlstm_ts.datasets import load_air_passengers


def test_the_last_year_of_air_passengers_is_forecast_much_better_than_by_seasonal_naive() -> None:
    df = load_air_passengers()
    history, actual = df.iloc[:-12], df.iloc[-12:]

    # Without the rehearsal that calibrates intervals: half the time, and the same medians.
    forecast = xLSTMForecaster(horizon=12, random_state=0, val_size=0).fit(history).predict()

    both = forecast.merge(seasonal_naive(history, horizon=12, season_length=12))
    table = accuracy(both, actual, history, season_length=12, models=["xLSTM", "SeasonalNaive"])
    assert (table.loc["xLSTM"] < 0.6 * table.loc["SeasonalNaive"]).all()
