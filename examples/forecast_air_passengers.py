"""Forecast a year of airline passengers, measure it beside seasonal naive, and draw the fan chart.

python examples/forecast_air_passengers.py [picture.png]
"""

import sys

from xlstm_ts import accuracy, seasonal_naive, xLSTMForecaster
from xlstm_ts.datasets import load_air_passengers
from xlstm_ts.plotting import plot_forecast

HORIZON = 12


def main() -> None:
    picture = sys.argv[1] if len(sys.argv) > 1 else "forecast_air_passengers.png"
    df = load_air_passengers()
    history, actual = df.iloc[:-HORIZON], df.iloc[-HORIZON:]

    forecaster = xLSTMForecaster(horizon=HORIZON, random_state=0, progress_bar=True).fit(history)
    forecast = forecaster.predict(level=[50, 80, 95])

    naive = seasonal_naive(history, horizon=HORIZON, season_length=12)
    table = accuracy(forecast.merge(naive), actual, history, season_length=12, models=["SeasonalNaive", "xLSTM"])
    print(table.round(3).to_string())

    ax = plot_forecast(history, forecast, actual=actual, last=72)
    ax.set_title("Airline passengers, thousands a month", loc="left", fontweight="bold")
    ax.figure.savefig(picture, dpi=160)
    print(f"fan chart: {picture}")


if __name__ == "__main__":
    main()
