"""Long-term forecasting on the ETT data sets: mean squared error over all test windows, beside published results.

python benchmarks/ltsf.py --data DIR --dataset ETTh1 --horizon 96 192 336 720    # DIR holds ETTh1.csv, ...
python benchmarks/ltsf.py --data DIR --workers 12 --device cuda --seeds 0 1 2    # all twelve cells, three times

Rows up to the first border train, up to the second one validate and up to the third one test. Every channel is z-scored
with the mean and deviation of its training rows, and is a series of its own. MSE and MAE are means over all windows of
stride 1 that lie in the test rows, the horizon and the channels. A forecast reads all rows before its cut-off, through
the carried state.

The published code of PatchTST tests batches of 128 windows and drops the last one where it is not full: up to 113 of
2,161 windows, the newest. A second table has the errors over these fewer windows.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from xlstm_ts import xLSTMForecaster

BORDERS = {
    "ETTh1": (8640, 11520, 14400),
    "ETTh2": (8640, 11520, 14400),
    "ETTm1": (34560, 46080, 57600),
}
SEASONS = {"ETTh1": (24, 168), "ETTh2": (24, 168), "ETTm1": (96,)}  # a day first
HORIZONS = (96, 192, 336, 720)
PUBLISHED = {  # mean MSE over the four horizons
    "PatchTST/64": {"ETTh1": 0.413, "ETTh2": 0.331, "ETTm1": 0.353},
    "DLinear": {"ETTh1": 0.423, "ETTh2": 0.431, "ETTm1": 0.357},
    "xLSTM-Mixer": {"ETTh1": 0.397, "ETTh2": 0.340, "ETTm1": 0.339},
}
# The one configuration of all twelve cells.
LOOKBACK = 21  # days that the linear map reads
SETTINGS = {
    "num_seasons": 2,
    "head": "point",
    "loss_unit": "series",
    "context_length": 336,
    "embedding_dim": 64,
    "dropout": 0.3,
    "learning_rate": 5e-4,
    "weight_decay": 0.05,
    "batch_size": 64,
    "max_epochs": 20,
    "steps_per_epoch": 50,
    "patience": 4,
}
AVERAGING = 0.98  # weights are averaged over about 50 steps
BATCH = 128  # of the windows of PatchTST's test


@dataclass(frozen=True)
class Cell:
    """Errors of one data set and horizon, also over full batches of windows alone.

    The validation's is the best mean squared error while training.
    """

    variant: str
    dataset: str
    horizon: int
    seed: int
    validation: float
    mse: float
    mae: float
    mse_full_batches: float
    seconds: float


def read_scaled(path: Path, borders: tuple[int, int, int]) -> pd.DataFrame:
    """The channels up to the last border, z-scored by their training rows; integer times from 0."""
    file = path if path.exists() else path.with_suffix(".csv.gz")
    channels = pd.read_csv(file, nrows=borders[-1]).drop(columns="date")
    train = channels.iloc[: borders[0]]
    return (channels - train.mean()) / train.std(ddof=0)


def measure(
    cell: tuple[str, str, int, int], *, data: Path, device: str, threads: int, steps: int | None, validate: bool
) -> Cell:
    """Train one cell and measure it on the test rows."""
    torch.set_num_threads(threads)
    variant, dataset, horizon, seed = cell
    settings = SETTINGS | {"linear_lookback": LOOKBACK * SEASONS[dataset][0]} | json.loads(variant)
    seasons = SEASONS[dataset][: settings.pop("num_seasons")]
    trial = {} if steps is None else {"max_epochs": 1, "steps_per_epoch": steps}
    train, validation, end = BORDERS[dataset]
    wide = read_scaled(data / f"{dataset}.csv", BORDERS[dataset])
    began = time.perf_counter()
    forecaster = xLSTMForecaster(
        horizon=horizon,
        season_length=seasons,
        val_size=validation - train,
        random_state=seed,
        trainer_params={
            "accelerator": "gpu" if device == "cuda" else "cpu",
            "callbacks": [EMAWeightAveraging(decay=AVERAGING)],
        },
        **(settings | trial),
    ).fit(wide.iloc[:validation])
    forecaster.network_.to(device)
    first, last = (train, validation) if validate else (validation, end)
    errors = [
        window_errors(forecaster, wide[[name]].iloc[:last], n_windows=last - first - horizon + 1) for name in wide
    ]
    seconds = time.perf_counter() - began
    return Cell(variant, dataset, horizon, seed, forecaster.losses_["val_loss"], *np.mean(errors, 0), seconds)


def window_errors(forecaster: xLSTMForecaster, channel: pd.DataFrame, *, n_windows: int) -> tuple[float, float, float]:
    """Mean squared and absolute error over the last windows of stride 1, and the first over full batches alone.

    The first window's cut-off is the border.
    """
    forecast = forecaster.backtest(channel, n_windows=n_windows, step=1, level=())
    error = (forecast["y"].to_numpy() - forecast["xLSTM"].to_numpy()).reshape(n_windows, -1)  # oldest cut-off first
    full = error[: n_windows - n_windows % BATCH]
    return float(np.mean(error**2)), float(np.mean(np.abs(error))), float(np.mean(full**2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the csv files")
    parser.add_argument("--dataset", nargs="+", choices=BORDERS, default=list(BORDERS))
    parser.add_argument("--horizon", nargs="+", type=int, default=list(HORIZONS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="+", default=["{}"], help="other settings, as JSON; a table for each")
    parser.add_argument("--steps", type=int, help="gradient steps of a trial run")
    parser.add_argument("--validate", action="store_true", help="measure on the validation rows instead")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    run = partial(
        measure,
        data=arguments.data,
        device=arguments.device,
        threads=arguments.threads,
        steps=arguments.steps,
        validate=arguments.validate,
    )
    # The longest horizons first: they take longest.
    horizons = sorted(arguments.horizon, reverse=True)
    wanted = [
        (variant, name, horizon, seed)
        for variant in arguments.set
        for seed in arguments.seeds
        for horizon in horizons
        for name in arguments.dataset
    ]
    began = time.perf_counter()
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        cells = []
        for done in as_completed([pool.submit(run, cell) for cell in wanted]):
            cells.append(done.result())
            print_cell(cells[-1])
    print(f"all in {time.perf_counter() - began:.0f} s\n")
    for variant in arguments.set:
        own = [cell for cell in cells if cell.variant == variant]
        print_table(variant, own)
        print_table("without a last batch that is not full", [replace(cell, mse=cell.mse_full_batches) for cell in own])


def print_cell(cell: Cell) -> None:
    name = f"{cell.dataset} {cell.horizon}"
    errors = f"validation {cell.validation:.4f}  MSE {cell.mse:.4f}  MAE {cell.mae:.4f}"
    errors += f"  full batches {cell.mse_full_batches:.4f}"
    print(f"{cell.variant} {name:<12} seed {cell.seed}  {errors}  {cell.seconds:.0f} s", flush=True)


def print_table(title: str, cells: list[Cell]) -> None:
    """MSE of each data set and horizon, their mean with its lowest and highest seed, beside what was published."""
    horizons = sorted({cell.horizon for cell in cells})
    names = list(PUBLISHED)
    header = "".join(f"{horizon:>8}" for horizon in horizons) + f"{'mean':>8}{'of seeds':>16}"
    print(f"{title}\n{'MSE':<8}{header}" + "".join(f"{n:>13}" for n in names) + f"{'validation':>13}")
    for dataset in sorted({cell.dataset for cell in cells}):
        own = [cell for cell in cells if cell.dataset == dataset]
        row = "".join(f"{np.mean([cell.mse for cell in own if cell.horizon == h]):8.3f}" for h in horizons)
        by_seed = [np.mean([cell.mse for cell in own if cell.seed == seed]) for seed in {cell.seed for cell in own}]
        spread = f"{min(by_seed):.3f} to {max(by_seed):.3f}"
        published = "".join(f"{PUBLISHED[name][dataset]:13.3f}" for name in names)
        validation = np.mean([cell.validation for cell in own])
        print(f"{dataset:<8}{row}{np.mean(by_seed):8.3f}{spread:>16}{published}{validation:13.4f}")


if __name__ == "__main__":
    main()
