"""Follow airline passengers month by month: a stream's forecasts, what the network remembers and what it looks at.

python examples/stream_air_passengers.py [picture.png]
"""

import sys

from matplotlib import pyplot as plt

from xlstm_ts import xLSTMForecaster
from xlstm_ts.datasets import load_air_passengers
from xlstm_ts.plotting import plot_attribution, plot_backtest, plot_half_lives

HORIZON, FOLLOWED = 12, 48


def main() -> None:
    picture = sys.argv[1] if len(sys.argv) > 1 else "stream_air_passengers.png"
    df = load_air_passengers()
    old, new = df.iloc[:-FOLLOWED], df.iloc[-FOLLOWED:]
    forecaster = xLSTMForecaster(horizon=HORIZON, random_state=0, progress_bar=True).fit(old)

    # Four years come in, the weights stay: each month costs one step of the memory.
    stream = forecaster.stream("AirPassengers", adapt=0.1)
    covered = []
    for value in new["y"]:
        ahead = stream.forecast(level=[80]).iloc[0]
        covered.append(ahead["xLSTM-lo-80"] <= value <= ahead["xLSTM-hi-80"])
        stream.push(value)
    print(f"{sum(covered)} of {FOLLOWED} months inside the 80 % interval of the month before")
    print(stream.forecast(level=[80]).head(3).to_string(index=False, float_format="%.1f"))

    figure = plt.figure(figsize=(11, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1)
    backtest = forecaster.backtest(df, n_windows=FOLLOWED, step=1)
    ax = plot_backtest(backtest, lead=6, ax=above.subplots())
    ax.set_title("Airline passengers, forecast six months before with the weights of 1956", loc="left", weight="bold")
    left, right = below.subplots(1, 2)
    plot_half_lives(forecaster.half_lives(df), ax=left)
    plot_attribution(forecaster.attribution(df, step=1), last=48, ax=right)
    right.set_title("what moves the forecast of the next month", loc="left", weight="bold")
    right.tick_params(axis="x", rotation=30)
    figure.savefig(picture, dpi=110)
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
