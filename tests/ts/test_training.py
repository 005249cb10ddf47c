"""Training lowers the loss, stops early, restores the best weights and leaves nothing behind."""

import copy
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

from xlstm_ts import training
from xlstm_ts.loaders import tail_loader
from xlstm_ts.module import ForecastModule
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.quantiles import TRAINED_QUANTILES
from xlstm_ts.selection import Lesson, validation_loss
from xlstm_ts.training import set_prior, train
from xlstm_ts.windows import SeriesPool

from .conftest import TRAINING

SIZES = NetworkConfig(
    horizon=6, season_lengths=(4,), quantiles=TRAINED_QUANTILES, patch_length=4, embedding_dim=8, num_heads=2
)


@pytest.fixture
def network() -> ForecastNetwork:
    torch.manual_seed(0)
    return ForecastNetwork(SIZES)


@pytest.fixture
def pool() -> SeriesPool:
    steps = np.arange(80)
    noise = 0.1 * np.random.default_rng(0).normal(size=80)
    return SeriesPool.from_lengths(np.sin(np.pi * steps / 2) + noise, np.array([50, 30]))


@pytest.fixture
def other_period() -> SeriesPool:
    """What no candidate continues, so that training helps."""
    return SeriesPool.from_lengths(np.sin(np.arange(80) / 2), np.array([80]))


class Losses(Callback):
    """Keeps the validation loss of every epoch, and the weights at its end."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["val_loss"]))
        self.weights.append(module.network.embedding.weight.detach().clone())


class Spoiler(Callback):
    """Ruins the weights before every epoch from the third on."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.current_epoch >= 2:
            module.network.decoder.output.bias.data += 10


def test_training_learns_what_no_candidate_continues(network: ForecastNetwork, other_period: SeriesPool) -> None:
    seen = Losses()
    config = replace(TRAINING, max_epochs=8, steps_per_epoch=10)

    train(network, other_period, config, trainer_params={"callbacks": [seen]})

    assert min(seen.losses) < 0.5 * seen.losses[0]


def test_a_network_is_told_of_the_typical_series(network: ForecastNetwork) -> None:
    values = np.array([8.0, 12, np.nan, 90, 110, 5, np.nan, 700, 1300])

    set_prior(network, SeriesPool.from_lengths(values, np.array([3, 2, 2, 2])))  # a single value does not count

    assert network.prior.tolist() == [100, 10, pytest.approx(0.2), 2]


def test_the_best_weights_are_restored(network: ForecastNetwork, other_period: SeriesPool) -> None:
    seen = Losses()
    config = replace(TRAINING, max_epochs=4, steps_per_epoch=10)

    losses = train(network, other_period, config, trainer_params={"callbacks": [Spoiler(), seen]})

    best = int(np.argmin(seen.losses))
    assert best < 2
    assert losses["val_loss"] == pytest.approx(seen.losses[best])
    assert torch.equal(network.embedding.weight, seen.weights[best])


def test_averaged_weights_are_what_is_validated_and_restored(
    network: ForecastNetwork, other_period: SeriesPool
) -> None:
    seen, averaging = Losses(), EMAWeightAveraging(decay=0.8)
    config = replace(TRAINING, steps_per_epoch=10)

    losses = train(network, other_period, config, trainer_params={"callbacks": [averaging, seen]})

    held_out = tail_loader(other_period, torch.tensor([6]), SIZES, config, step=6)
    module = ForecastModule(network, config, least_history=4)
    assert losses["val_loss"] == pytest.approx(min(seen.losses))
    assert validation_loss(module, held_out) == pytest.approx(losses["val_loss"], rel=1e-5)


def test_training_that_only_makes_forecasts_worse_leaves_no_trace(network: ForecastNetwork, pool: SeriesPool) -> None:
    learned = train(network, pool, TRAINING)
    before = copy.deepcopy(network.state_dict())

    losses = train(network, pool, replace(TRAINING, learning_rate=10.0), go_on=True)

    assert losses["val_loss"] == pytest.approx(learned["val_loss"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_tail_of_missing_values_does_not_keep_a_network_untrained(network: ForecastNetwork) -> None:
    values = np.append(np.sin(np.arange(60) / 2), np.full(6, np.nan))
    before = network.embedding.weight.detach().clone()

    train(network, SeriesPool.from_lengths(values, np.array([66])), TRAINING)

    assert not torch.equal(network.embedding.weight, before)


def test_a_linear_map_is_solved_for_once(pool: SeriesPool) -> None:
    network, config = ForecastNetwork(replace(SIZES, linear_lookback=8)), TRAINING
    other = SeriesPool.from_lengths(np.cos(np.arange(80) / 3), np.array([80]))

    train(network, pool, config)
    linear_map = network.candidates.linear_map.clone()
    train(network, other, config, go_on=True)

    assert linear_map.any()
    assert torch.equal(network.candidates.linear_map, linear_map)


def test_training_stops_when_validation_no_longer_improves(network: ForecastNetwork, pool: SeriesPool) -> None:
    seen = Losses()
    config = replace(TRAINING, max_epochs=50, patience=2)

    train(network, pool, config, trainer_params={"callbacks": [Spoiler(), seen]})

    assert len(seen.losses) == int(np.argmin(seen.losses)) + 1 + 2


def test_without_a_tail_nothing_validates(network: ForecastNetwork, pool: SeriesPool) -> None:
    losses = train(network, pool, replace(TRAINING, val_size=0))

    assert set(losses) == {"train_loss"}


def test_a_pool_too_short_to_spare_a_tail_rehearses_its_margins(network: ForecastNetwork, pool: SeriesPool) -> None:
    other = copy.deepcopy(network)

    losses = train(network, pool, replace(TRAINING, val_size=None))
    train(other, pool, replace(TRAINING, val_size=0))

    assert "val_loss" not in losses
    assert network.margins.any()
    assert not other.margins.any()


@pytest.mark.parametrize("lesson", [Lesson(0, 0.0), Lesson(2, 0.5), Lesson(3, 1.0)])
def test_training_goes_as_far_as_the_rehearsal_was_worth_it(
    network: ForecastNetwork, pool: SeriesPool, lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "choose_weights", lambda *_: (0.0, lesson))
    config = replace(TRAINING, val_size=None)
    fresh, whole = copy.deepcopy(network), copy.deepcopy(network)

    train(network, pool, config)

    train(whole, pool, replace(config, val_size=0, max_epochs=max(lesson.epochs, 1)))
    start, end = fresh.embedding.weight, whole.embedding.weight
    torch.testing.assert_close(network.embedding.weight, torch.lerp(start, end, lesson.share))


def test_a_trained_network_is_in_evaluation_mode(network: ForecastNetwork, pool: SeriesPool) -> None:
    train(network, pool, TRAINING)

    assert not network.training


def test_the_progress_bar_shows_when_asked_for(network: ForecastNetwork, pool: SeriesPool, capfd) -> None:
    train(network, pool, TRAINING, progress_bar=True)

    assert "Epoch" in "".join(capfd.readouterr())


def test_trainer_arguments_are_handed_on(network: ForecastNetwork, pool: SeriesPool, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    train(network, pool, TRAINING, trainer_params={"logger": logger, "log_every_n_steps": 1})

    assert list(tmp_path.rglob("metrics.csv"))


def test_trainer_arguments_come_before_our_own(network: ForecastNetwork, pool: SeriesPool, tmp_path: Path) -> None:
    seen = Losses()
    mine = {"max_epochs": 1, "gradient_clip_val": 0.5, "default_root_dir": tmp_path, "callbacks": [seen]}

    train(network, pool, TRAINING, trainer_params=mine)

    assert len(seen.losses) == 1


class Killed(Exception):
    """What ends a training from outside."""


class Kill(Callback):
    """Ends training in its third epoch."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise Killed


@pytest.mark.parametrize("val_size", [0, 6])
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(
    network: ForecastNetwork, pool: SeriesPool, tmp_path: Path, val_size: int
) -> None:
    network = ForecastNetwork(replace(SIZES, dropout=0.2))
    whole, again = copy.deepcopy(network), copy.deepcopy(network)
    config = replace(TRAINING, max_epochs=4, val_size=val_size)
    folder = tmp_path / "checkpoints"
    torch.manual_seed(3)
    train(whole, pool, config)

    with pytest.raises(Killed):
        train(network, pool, config, trainer_params={"callbacks": [Kill()]}, folder=folder)
    assert (folder / "last.ckpt").exists()
    seen = Losses()
    train(again, pool, config, trainer_params={"callbacks": [seen]} if val_size else None, folder=folder)

    assert len(seen.losses) == (2 if val_size else 0)
    assert list(folder.iterdir()) == []
    for expected, found in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_two_processes_train_as_one(network: ForecastNetwork, pool: SeriesPool) -> None:
    config = TRAINING
    before = network.embedding.weight.detach().clone()

    losses = train(network, pool, config, trainer_params={"devices": 2, "strategy": "ddp_spawn"})

    assert set(losses) == {"train_loss", "val_loss"}
    assert not torch.equal(network.embedding.weight, before)
    assert not network.training
