"""Forecast accuracy on M4 Hourly (414 series, horizon 48) beside seasonal naive and the published results.

python benchmarks/m4_hourly.py --data DIR    # DIR holds m4_hourly_train.csv and m4_hourly_test.csv
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

from xlstm_ts import accuracy, owa, seasonal_naive, xLSTMForecaster

HORIZON, DAY = 48, 24
NAIVE2 = {"naive_smape": 18.383, "naive_mase": 2.395}  # the reference of OWA, from the competition
PUBLISHED = {
    "seasonal naive": (13.912, 1.193),
    "Theta": (18.138, 2.455),
    "ES-RNN (M4 winner)": (9.328, 0.893),
    "FFORMA": (11.506, 0.819),
    "best entry": (8.913, 0.801),
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    history = read_long(arguments.data / "m4_hourly_train.csv")
    actual = continue_times(read_long(arguments.data / "m4_hourly_test.csv"), history)
    if arguments.validate:
        actual = history.groupby("unique_id", sort=False).tail(HORIZON)
        history = history.drop(actual.index)

    began = time.perf_counter()
    forecaster = xLSTMForecaster(horizon=HORIZON, random_state=arguments.seed, progress_bar=arguments.progress)
    forecast = forecaster.fit(history).predict()
    seconds = time.perf_counter() - began

    naive = seasonal_naive(history, horizon=HORIZON, season_length=DAY)
    measured = accuracy(
        forecast.merge(naive, on=["unique_id", "ds"]),
        actual,
        history,
        season_length=DAY,
        models=["SeasonalNaive", "xLSTM"],
    )
    print(f"{'M4 Hourly':<34}{'sMAPE':>8}{'MASE':>8}{'OWA':>8}")
    print_row("seasonal naive, measured here", *measured.loc["SeasonalNaive"])
    print_row(f"xLSTM, fit and predict in {seconds:.0f} s", *measured.loc["xLSTM"])
    for name, errors in PUBLISHED.items():
        print_row(f"{name}, published", *errors)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the two csv files of the competition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--validate", action="store_true", help="measure on the last 48 training values instead")
    parser.add_argument("--progress", action="store_true", help="show the progress bar")
    return parser.parse_args()


def read_long(path: Path) -> pd.DataFrame:
    """One series a row, padded with empty cells, as a long frame with integer times from 1."""
    wide = pd.read_csv(path, index_col=0)
    wide.columns = range(1, wide.shape[1] + 1)
    long = wide.rename_axis(index="unique_id", columns="ds").stack().rename("y").reset_index()
    return long.dropna().astype({"ds": "int64"})


def continue_times(test: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The test values at the times after each series' training values."""
    last = train.groupby("unique_id")["ds"].max()
    return test.assign(ds=test["ds"] + test["unique_id"].map(last))


def print_row(name: str, smape: float, mase: float) -> None:
    print(f"{name:<34}{smape:8.3f}{mase:8.3f}{owa(smape, mase, **NAIVE2):8.3f}")


if __name__ == "__main__":
    main()
