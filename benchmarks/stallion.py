"""Accuracy on the stallion panel (350 agency and SKU series, monthly) beside models of pytorch-forecasting.

python benchmarks/stallion.py --data stallion.parquet --seeds 0 1 2 3 4    # reading parquet needs pyarrow

The split, the covariates and the choice of the weights by the loss on the held-out months are those of
pytorch-forecasting's tutorial on the temporal fusion transformer, and so are that model's sizes. As those months are
then measured as well, all models look better than they are. All have the same budget. ``--validate`` measures on the
six months before them: there the weights below were chosen, and the learning rate of each model from 3e-3 and 1e-2.

A quantile loss in units of sales looks at large series alone. xLSTM is therefore trained with weights that fall with
the square root of a series' mean; the transformer is measured with and without them. DeepAR's likelihood needs none.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pytorch_forecasting import Baseline, DeepAR, GroupNormalizer, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE, SMAPE, NormalDistributionLoss, QuantileLoss
from torch import Tensor
from torch.utils.data import DataLoader

from xlstm_ts import xLSTMModel

HORIZON, HISTORY = 6, 24
BATCH_SIZE = 128
SPECIAL_DAYS = ["easter_day", "good_friday", "new_year", "christmas", "labor_day", "independence_day"]
SPECIAL_DAYS += ["revolution_day_memorial", "regional_games", "fifa_u_17_world_cup", "football_gold_cup"]
SPECIAL_DAYS += ["beer_capital", "music_fest"]
UNKNOWN = ["volume", "log_volume", "industry_volume", "soda_volume", "avg_max_temp"]
UNKNOWN += ["avg_volume_by_agency", "avg_volume_by_sku"]
COLUMNS = {"model": 26, "seed": 6, "MAE": 8, "SMAPE": 8, "quantile loss": 15, "epochs": 8, "CPU s": 9, "size": 10}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Entry(NamedTuple):
    """A model with what its data set must hold."""

    build: Callable[[TimeSeriesDataSet], pl.LightningModule]
    unknown: list[str]
    weight: str | None
    transformation: str | None


def build_xlstm(training: TimeSeriesDataSet) -> pl.LightningModule:
    return xLSTMModel.from_dataset(training, learning_rate=1e-2)


def build_tft(training: TimeSeriesDataSet) -> pl.LightningModule:
    """Of the tutorial's size; adam instead of its ranger, which needs one more package."""
    return TemporalFusionTransformer.from_dataset(
        training, learning_rate=3e-3, hidden_size=16, attention_head_size=2, dropout=0.1, hidden_continuous_size=8
    )


def build_deepar(training: TimeSeriesDataSet) -> pl.LightningModule:
    return DeepAR.from_dataset(
        training, learning_rate=3e-3, hidden_size=32, rnn_layers=2, dropout=0.1, loss=NormalDistributionLoss()
    )


ENTRIES = {
    "xLSTM": Entry(build_xlstm, UNKNOWN, "weight", "softplus"),
    "TFT": Entry(build_tft, UNKNOWN, None, "softplus"),
    "TFT-weighted": Entry(build_tft, UNKNOWN, "weight", "softplus"),
    # No unknown covariate besides the target, and no transformation under which a volume of 0 is impossible.
    "DeepAR": Entry(build_deepar, ["volume"], None, None),
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    data = read_panel(arguments.data)
    if arguments.validate:
        data = data[data["time_idx"] <= data["time_idx"].max() - HORIZON]

    print("".join(f"{column:>{width}}" for column, width in COLUMNS.items()))
    _, held_out = make_loaders(data, ENTRIES["TFT"])
    last = Baseline().predict(held_out, return_y=True, trainer_kwargs=dict(QUIET))
    print_row("last value", "", *score_point(last.output, last.y[0]))
    rows: dict[str, list[list[float]]] = {name: [] for name in arguments.models}
    for seed in arguments.seeds:
        for name in arguments.models:
            rows[name].append(measure(ENTRIES[name], data, seed=seed, epochs=arguments.epochs))
            print_row(name, str(seed), *rows[name][-1])
    for name in arguments.models:
        print_row(name, "mean", *np.mean(rows[name], axis=0))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="stallion.parquet of pytorch-forecasting")
    parser.add_argument("--models", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12, help="of 50 batches each")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--validate", action="store_true", help="measure on the six months before the last six")
    return parser.parse_args()


def read_panel(path: Path) -> pd.DataFrame:
    """The panel with the tutorial's features."""
    data = pd.read_parquet(path)
    months = data["date"].dt.year * 12 + data["date"].dt.month
    data["time_idx"] = months - months.min()
    data["month"] = data["date"].dt.month.astype(str).astype("category")
    data["log_volume"] = np.log(data["volume"] + 1e-8)
    for group in ("sku", "agency"):
        data[f"avg_volume_by_{group}"] = data.groupby(["time_idx", group], observed=True)["volume"].transform("mean")
    for day in SPECIAL_DAYS:
        data[day] = data[day].map({0: "-", 1: day}).astype("category")
    return data


def add_weight(data: pd.DataFrame, known: pd.Series) -> pd.DataFrame:
    """Weights of mean 1 that fall with the square root of a series' mean over the rows that are ``known``."""
    groups = [data["agency"], data["sku"]]
    mean = data["volume"].where(known).groupby(groups, observed=True).transform("mean")
    weight = (mean + 10.0) ** -0.5
    return data.assign(weight=weight / weight.mean())


def make_loaders(data: pd.DataFrame, entry: Entry) -> tuple[DataLoader, DataLoader]:
    """Training windows, and each series' last six months."""
    known = data["time_idx"] <= data["time_idx"].max() - HORIZON
    data = add_weight(data, known)
    training = TimeSeriesDataSet(
        data[known],
        time_idx="time_idx",
        target="volume",
        weight=entry.weight,
        group_ids=["agency", "sku"],
        min_encoder_length=HISTORY // 2,
        max_encoder_length=HISTORY,
        min_prediction_length=1,
        max_prediction_length=HORIZON,
        static_categoricals=["agency", "sku"],
        static_reals=["avg_population_2017", "avg_yearly_household_income_2017"],
        time_varying_known_categoricals=["special_days", "month"],
        variable_groups={"special_days": SPECIAL_DAYS},
        time_varying_known_reals=["time_idx", "price_regular", "discount_in_percent"],
        time_varying_unknown_reals=entry.unknown,
        target_normalizer=GroupNormalizer(groups=["agency", "sku"], transformation=entry.transformation),
        add_relative_time_idx=True,
        add_target_scales=True,
        add_encoder_length=True,
    )
    held_out = TimeSeriesDataSet.from_dataset(training, data, predict=True, stop_randomization=True)
    return (
        training.to_dataloader(train=True, batch_size=BATCH_SIZE, num_workers=0),
        held_out.to_dataloader(train=False, batch_size=10 * BATCH_SIZE, num_workers=0),
    )


def measure(entry: Entry, data: pd.DataFrame, *, seed: int, epochs: int) -> list[float]:
    """Train a model; the errors of its best weights, epochs, CPU seconds and parameters."""
    pl.seed_everything(seed, verbose=False)
    training, held_out = make_loaders(data, entry)
    model = entry.build(training.dataset)
    with TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val_loss")
        trainer = pl.Trainer(
            max_epochs=epochs,
            limit_train_batches=50,
            gradient_clip_val=0.1,
            callbacks=[best],
            num_sanity_val_steps=0,
            **QUIET,
        )
        began = time.process_time()  # of all threads; unlike the clock, no matter what else the machine does
        trainer.fit(model, training, held_out)
        seconds = time.process_time() - began
        model = type(model).load_from_checkpoint(best.best_model_path)
    predicted = model.predict(held_out, mode="quantiles", return_y=True, trainer_kwargs=dict(QUIET))
    return [*score(predicted.output, predicted.y[0]), trainer.current_epoch, seconds, model.size()]


def score(quantiles: Tensor, actual: Tensor) -> tuple[float, float, float]:
    """MAE and SMAPE of the median, and the quantile loss, of forecasts (series, steps, quantiles)."""
    loss = QuantileLoss()
    median = quantiles[..., loss.quantiles.index(0.5)]
    return *score_point(median, actual), float(loss.loss(quantiles, actual).mean())


def score_point(point: Tensor, actual: Tensor) -> tuple[float, float]:
    return float(MAE()(point, actual)), float(SMAPE()(point, actual))


def print_row(*cells: str | float) -> None:
    text = [cell if isinstance(cell, str) else f"{cell:.3f}" if cell < 10 else f"{cell:.1f}" for cell in cells]
    print("".join(f"{cell:>{width}}" for cell, width in zip(text, COLUMNS.values(), strict=False)), flush=True)


if __name__ == "__main__":
    main()
