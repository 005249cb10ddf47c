"""xLSTM as a model of pytorch-forecasting: weekly demand of shops that announce their promotions in advance.

python examples/pytorch_forecasting_promotions.py [picture.png]

The panel is generated, so that it is known what there is to find: a level of each shop that drifts, a yearly season,
and promotions that lift the demand of their week and lower that of the next.
"""

import logging
import sys
import warnings

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pytorch_forecasting import Baseline, GroupNormalizer, TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE, QuantileLoss
from pytorch_forecasting.models.base import Prediction

from xlstm_ts import xLSTMModel

SHOPS, WEEKS, HISTORY, HORIZON = 30, 156, 52, 13
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


def main() -> None:
    picture = sys.argv[1] if len(sys.argv) > 1 else "pytorch_forecasting_promotions.png"
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)

    df = make_demand()
    training = TimeSeriesDataSet(
        df[df["week"] < WEEKS - HORIZON],
        time_idx="week",
        target="demand",
        group_ids=["shop"],
        min_encoder_length=HISTORY // 2,
        max_encoder_length=HISTORY,
        max_prediction_length=HORIZON,
        static_categoricals=["shop"],
        time_varying_known_categoricals=["promotion"],
        time_varying_known_reals=["season_sin", "season_cos"],
        time_varying_unknown_reals=["demand"],
        target_normalizer=GroupNormalizer(groups=["shop"], transformation="softplus"),
    )
    held_out = TimeSeriesDataSet.from_dataset(training, df, predict=True)

    model = xLSTMModel.from_dataset(training, loss=QuantileLoss(), learning_rate=0.01)
    trainer = pl.Trainer(max_epochs=4, limit_train_batches=50, gradient_clip_val=1.0, **QUIET)
    trainer.fit(model, training.to_dataloader(batch_size=64, num_workers=0))

    forecast = model.predict(
        held_out, mode="raw", return_x=True, return_y=True, return_index=True, trainer_kwargs=dict(QUIET)
    )
    point = model.to_prediction(forecast.output)
    naive = Baseline().predict(held_out, trainer_kwargs=dict(QUIET))
    errors = [float(MAE()(values, forecast.y)) for values in (point, naive)]
    print("mean absolute error over {} weeks: xLSTM {:.2f}, last value {:.2f}".format(HORIZON, *errors))
    draw(model, forecast, df, picture)
    print(f"forecasts of three shops: {picture}")


def make_demand() -> pd.DataFrame:
    """A long frame with a row for each shop and week."""
    rng = np.random.default_rng(0)
    weeks = np.arange(WEEKS)
    angle = 2 * np.pi * weeks / 52
    frames = []
    for shop in range(SHOPS):
        promoted = rng.random(WEEKS) < 0.12
        level = np.exp(rng.uniform(2.5, 4.0) + np.cumsum(rng.normal(0, 0.015, WEEKS)))
        effect = 0.6 * promoted - 0.25 * np.roll(promoted, 1)
        demand = level * np.exp(0.3 * np.sin(angle) + effect + rng.normal(0, 0.07, WEEKS))
        frames.append(pd.DataFrame({"shop": f"shop {shop}", "week": weeks, "promoted": promoted, "demand": demand}))
    df = pd.concat(frames, ignore_index=True)
    df["promotion"] = np.where(df["promoted"], "promotion", "none")
    return df.assign(season_sin=np.tile(np.sin(angle), SHOPS), season_cos=np.tile(np.cos(angle), SHOPS))


def draw(model: xLSTMModel, forecast: Prediction, df: pd.DataFrame, picture: str) -> None:
    """Three shops with pytorch-forecasting's own plot, the announced promotions marked."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for index, ax in enumerate(axes):
        model.plot_prediction(forecast.x, forecast.output, idx=index, ax=ax)
        name = forecast.index["shop"][index]
        promotions = df.loc[(df["shop"] == name) & df["promoted"], "week"] - (WEEKS - HORIZON)
        for week in promotions[promotions >= -HISTORY]:
            ax.axvline(week, color="tab:red", alpha=0.2, linewidth=3, zorder=0)
        ax.set_title(name, loc="left", fontweight="bold")
        ax.set_xlabel("weeks ahead, promotions in red")
    for repeated in figure.legends[1:]:
        repeated.remove()
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main()
