"""Half-hourly electricity demand of Victoria with and without temperature and holidays, known two days ahead.

python benchmarks/vic_elec.py --data DIR    # DIR holds vic_elec.csv.gz

Trains on 2012 and 2013 and forecasts two days from every midnight (UTC) of 2014 in one pass; temperatures ahead are
those that were measured later, so the gain is that of a perfect weather forecast.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xlstm_ts import xLSTMForecaster

DAY = 48
HORIZON = 2 * DAY
COVARIATES = ["temperature", "holiday"]


def read_demand(path: Path) -> pd.DataFrame:
    """A long frame of one series with its covariates; UTC times."""
    frame = pd.read_csv(path, parse_dates=["time"]).rename(columns={"time": "ds", "demand": "y"})
    return frame.assign(unique_id="Victoria")


def measure(
    frame: pd.DataFrame, known: list[str], seed: int, max_epochs: int, progress: bool
) -> tuple[pd.DataFrame, float]:
    """The backtest over the last year, and the seconds that fit and backtest took."""
    train = frame[frame["ds"] < "2014-01-01"]
    windows = (len(frame) - len(train) - HORIZON) // DAY
    forecaster = xLSTMForecaster(
        HORIZON, known=known, random_state=seed, max_epochs=max_epochs, progress_bar=progress, val_size=60 * DAY
    )
    began = time.perf_counter()
    forecast = forecaster.fit(train).backtest(frame, n_windows=windows, step=DAY)
    return forecast, time.perf_counter() - began


def print_row(name: str, forecast: pd.DataFrame, column: str, seconds: float) -> None:
    error = forecast["y"] - forecast[column]
    mape = 100 * (error / forecast["y"]).abs().mean()
    line = f"{name:<34}{error.abs().mean():8.1f}{np.sqrt((error**2).mean()):8.1f}{mape:8.2f}"
    if "xLSTM-lo-80" in forecast and column == "xLSTM":
        line += f"{100 * forecast.eval('`xLSTM-lo-80` <= y <= `xLSTM-hi-80`').mean():10.1f}{seconds:8.0f} s"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with vic_elec.csv.gz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--progress", action="store_true", help="show the progress bar")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    frame = read_demand(arguments.data / "vic_elec.csv.gz")

    print(f"{'demand of 2014, two days ahead':<34}{'MAE':>8}{'RMSE':>8}{'MAPE':>8}{'in 80 %':>10}", flush=True)
    for name, known in (("without covariates", []), ("temperature and holidays", COVARIATES)):
        forecast, seconds = measure(frame, known, arguments.seed, arguments.max_epochs, arguments.progress)
        if not known:
            week_ago = frame.set_index("ds")["y"].shift(7 * DAY)
            naive = forecast.assign(naive=forecast["ds"].map(week_ago))
            print_row("the same half-hour a week ago", naive, "naive", seconds)
        print_row(name, forecast, "xLSTM", seconds)


if __name__ == "__main__":
    main()
