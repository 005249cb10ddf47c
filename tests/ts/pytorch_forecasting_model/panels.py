"""A small panel with every kind of covariate, data sets on it, and models that are quick to run."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_forecasting import GroupNormalizer, TimeSeriesDataSet
from pytorch_forecasting.data import NaNLabelEncoder
from torch import Tensor

from xlstm_ts.pytorch_forecasting_model import xLSTMModel

HISTORY, HORIZON = 8, 4
NUM_MONTHS = 30
TINY: dict[str, Any] = {"hidden_size": 8, "num_heads": 2, "dropout": 0.0}


def make_panel(shops: tuple[str, ...] = ("a", "b", "c")) -> pd.DataFrame:
    """Monthly sales of some shops, one of which opened late, whose sales follow the price."""
    rng = np.random.default_rng(0)
    steps = np.arange(NUM_MONTHS)
    price = rng.uniform(1.0, 2.0, NUM_MONTHS)
    frames = [
        pd.DataFrame(
            {
                "shop": shop,
                "step": steps,
                "month": (steps % 12).astype(str),
                "easter": np.where(steps % 12 == 3, "easter", "-"),
                "christmas": np.where(steps % 12 == 11, "christmas", "-"),
                "size": float(level),
                "price": price,
                "visitors": rng.normal(size=NUM_MONTHS),
                "weather": rng.choice(["sun", "rain"], NUM_MONTHS),
                "sales": 2.0 * level - 8.0 * price + 0.1 * rng.normal(size=NUM_MONTHS),
                "returns": rng.gamma(2.0, size=NUM_MONTHS),
            }
        )
        for level, shop in enumerate(shops, start=1)
    ]
    frames[0] = frames[0].tail(NUM_MONTHS // 2)
    return pd.concat(frames, ignore_index=True)


def make_dataset(panel: pd.DataFrame | None = None, **options: Any) -> TimeSeriesDataSet:
    """Windows with histories of 0 to ``HISTORY`` steps, in which an unknown shop has a label of its own."""
    settings = {
        "time_idx": "step",
        "target": "sales",
        "group_ids": ["shop"],
        "min_encoder_length": 0,
        "max_encoder_length": HISTORY,
        "max_prediction_length": HORIZON,
        "static_categoricals": ["shop"],
        "static_reals": ["size"],
        "time_varying_known_categoricals": ["month", "holiday"],
        "variable_groups": {"holiday": ["easter", "christmas"]},
        "time_varying_known_reals": ["price"],
        "time_varying_unknown_categoricals": ["weather"],
        "time_varying_unknown_reals": ["sales", "returns", "visitors"],
        "categorical_encoders": {"shop": NaNLabelEncoder(add_nan=True)},
        "target_normalizer": GroupNormalizer(groups=[]),
    }
    return TimeSeriesDataSet(make_panel() if panel is None else panel, **{**settings, **options})


def make_model(dataset: TimeSeriesDataSet, **options: Any) -> xLSTMModel:
    """A model in evaluation mode."""
    torch.manual_seed(0)
    return xLSTMModel.from_dataset(dataset, **{**TINY, **options}).eval()


def first_batch(dataset: TimeSeriesDataSet, batch_size: int = 16) -> tuple[dict[str, Tensor], Any]:
    """Inputs and targets of windows with different lengths of history."""
    loader = dataset.to_dataloader(train=True, batch_size=batch_size, num_workers=0)
    torch.manual_seed(0)
    return next(iter(loader))


def select_row(x: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One window alone, as a loader would give it: without the padding that its batch mates need."""
    length = int(x["encoder_lengths"][row])
    alone = {name: values[[row]] for name, values in x.items()}
    return {
        name: values[:, :length] if name in ("encoder_cont", "encoder_cat", "encoder_target") else values
        for name, values in alone.items()
    }
