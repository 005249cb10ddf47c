"""Of what a training changed, as much is kept as forecasts held-out windows best."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from xlstm_ts import selection
from xlstm_ts.loaders import tail_loader
from xlstm_ts.module import ForecastModule
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.selection import Lesson, between, choose_weights
from xlstm_ts.windows import SeriesPool, Windows

from .conftest import TRAINING

SIZES = NetworkConfig(
    horizon=6, season_lengths=(4,), quantiles=(0.1, 0.5, 0.9), patch_length=4, embedding_dim=8, num_heads=2
)


@pytest.fixture
def module() -> ForecastModule:
    torch.manual_seed(0)
    return ForecastModule(ForecastNetwork(SIZES), TRAINING, least_history=4)


@pytest.fixture
def held_out() -> DataLoader[Windows]:
    pool = SeriesPool.from_lengths(np.sin(np.arange(80) / 2), np.array([80]))
    return tail_loader(pool, torch.tensor([6]), SIZES, TRAINING, step=6)


def move_bias(module: ForecastModule, by: float) -> dict[str, torch.Tensor]:
    weights = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    weights["decoder.output.bias"] += by
    return weights


def save_checkpoint(weights: dict[str, torch.Tensor], epoch: int, path: Path) -> None:
    named = {f"network.{name}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": named, "epoch": epoch}, path)


@pytest.mark.parametrize(("best", "share"), [(0.0, 0.0), (3.0, 0.75), (4.0, 1.0)])
def test_the_share_that_forecasts_best_is_kept(
    module: ForecastModule,
    held_out: DataLoader[Windows],
    tmp_path: Path,
    best: float,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, end = move_bias(module, 0.0), move_bias(module, 4.0)
    save_checkpoint(end, 6, tmp_path / "best.ckpt")
    bias, first = module.network.decoder.output.bias.detach(), start["decoder.output.bias"]
    monkeypatch.setattr(selection, "validation_loss", lambda *_: float((bias - first - best).abs().mean()))

    loss, lesson = choose_weights(module, start, tmp_path / "best.ckpt", held_out)

    assert loss == pytest.approx(0, abs=1e-5)
    assert lesson == Lesson(7 if share else 0, share)
    torch.testing.assert_close(bias, first + best)


def test_weights_that_forecast_nothing_but_nan_are_not_kept(
    module: ForecastModule, held_out: DataLoader[Windows], tmp_path: Path
) -> None:
    start = move_bias(module, 0.0)
    save_checkpoint(move_bias(module, torch.nan), 0, tmp_path / "best.ckpt")

    loss, lesson = choose_weights(module, start, tmp_path / "best.ckpt", held_out)

    assert np.isfinite(loss)
    assert lesson == Lesson(0, 0.0)


def test_between_two_weights_lie_their_mixtures_and_integers_stay_as_learned() -> None:
    start, end = (
        {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor(1)},
        {"a": torch.tensor([8.0, 4.0]), "b": torch.tensor(9)},
    )

    mixed = between(start, end, 0.25)

    assert mixed["a"].tolist() == [2.0, 4.0]
    assert mixed["b"] == 9
