"""Training with Lightning: early stopping on held-out tails, or a rehearsal of it; calibrated intervals."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from xlstm_ts.calibration import calibrate
from xlstm_ts.loaders import (
    least_history,
    rehearsal_tails,
    review_loader,
    tail_loader,
    training_loader,
    validation_step,
    validation_tails,
)
from xlstm_ts.module import ForecastModule
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.scaling import typical_series
from xlstm_ts.selection import Lesson, between, choose_weights
from xlstm_ts.start import find_start
from xlstm_ts.training_config import TrainingConfig
from xlstm_ts.windows import SeriesPool, Windows

GRADIENT_CLIP = 1.0
REHEARSED_ORIGINS = 4  # within a horizon


def train(
    network: ForecastNetwork,
    pool: SeriesPool,
    config: TrainingConfig,
    *,
    progress_bar: bool = False,
    trainer_params: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    go_on: bool = False,
) -> dict[str, float]:
    """Fit a network in place; it ends on the CPU, in evaluation mode.

    Where tails are held out, they stop training early, choose the weights and calibrate the intervals. Where the data
    is too short to spare any, a rehearsal without the newest values does so, and the network then trains on all as
    far as the rehearsal was worth it.

    Args:
        network: what to train.
        pool: the series.
        config: how.
        progress_bar: show Lightning's.
        trainer_params: more arguments for ``lightning.Trainer``, such as accelerator, devices or logger.
        folder: where each epoch leaves a checkpoint, to go on from after an interruption; None is nowhere.
        go_on: the network was trained on other data: what it began with stays.

    Returns:
        The last train_loss, where it trained, and, with held-out tails, the best val_loss.
    """
    sizes, season = network.config, network.config.season_lengths[0]
    set_prior(network, pool)
    least = least_history(pool, sizes)
    if not (pool.lengths > least).any():
        network.eval()
        return {}
    fit = partial(
        fit_network,
        config=config,
        least=least,
        fresh=not go_on,
        progress_bar=progress_bar,
        trainer_params=trainer_params or {},
    )
    review = partial(review_loader, sizes=sizes, config=config)
    tails = validation_tails(pool.lengths, config.val_size, horizon=sizes.horizon, kept=2 * season)
    if config.val_size and not tails.any():
        raise ValueError(f"val_size={config.val_size} leaves no series more than two seasons to train on: choose less")
    if tails.any():
        rest = pool.without_tails(tails)
        held_out = tail_loader(pool, tails, sizes, config, step=validation_step(tails, sizes.horizon))
        losses, _ = fit(network, rest, held_out=held_out, folder=folder)
        calibrate(network, held_out, review(rest), least_history=least)
        return losses
    if config.val_size == 0:
        return fit(network, pool, folder=folder)[0]
    tails = rehearsal_tails(pool.lengths, horizon=sizes.horizon, season_length=season)
    if not tails.any():
        losses, _ = fit(network, pool, folder=folder)
        calibrate(network, None, review(pool), least_history=least)
        return losses
    rehearsal, rest = copy.deepcopy(network), pool.without_tails(tails)
    held_out = tail_loader(pool, tails, sizes, config, step=max(1, sizes.horizon // REHEARSED_ORIGINS))
    _, lesson = fit(rehearsal, rest, held_out=held_out)
    calibrate(rehearsal, held_out, review(rest), least_history=least)
    # Weights to go on from may have been trained on the newest values: that they forecast these well says little.
    losses, _ = fit(network, pool, folder=folder, lesson=None if go_on else lesson)
    network.margins.copy_(rehearsal.margins)
    network.path_correlation.copy_(rehearsal.path_correlation)
    return losses


def set_prior(network: ForecastNetwork, pool: SeriesPool) -> None:
    """Tell a network what its series are like, for those of which it sees next to nothing."""
    levels, deviations = [], []
    for start, stop in zip(pool.starts.tolist(), pool.stops.tolist(), strict=True):
        values = pool.rows.values[0, start:stop][pool.rows.seen[0, start:stop]]
        if len(values) > 1:
            levels.append(values.mean())
            deviations.append(values.std(correction=0))
    if levels:
        network.prior.copy_(torch.stack(typical_series(torch.stack(levels), torch.stack(deviations))))


def fit_network(
    network: ForecastNetwork,
    pool: SeriesPool,
    *,
    config: TrainingConfig,
    least: int,
    fresh: bool,
    held_out: DataLoader[Windows] | None = None,
    lesson: Lesson | None = None,
    progress_bar: bool,
    trainer_params: Mapping[str, Any],
    folder: Path | None = None,
) -> tuple[dict[str, float], Lesson]:
    """One run of the trainer; with held-out windows it ends with the weights that forecast them best.

    These may be the plain ones of ``find_start``: training is kept as far as it helps, or as it helped in a rehearsal.
    """
    training = training_loader(pool, network.config, config)
    start = copy.deepcopy(
        find_start(network, training, held_out, unit=config.loss_unit) if fresh else network.state_dict()
    )
    lesson = lesson or Lesson(config.max_epochs, 1.0)
    if not lesson.epochs:
        network.load_state_dict(start)
        network.eval()
        return {}, lesson
    module = ForecastModule(network.cpu(), replace(config, max_epochs=lesson.epochs), least_history=least)
    with checkpoint_folder(folder) as kept:
        losses = run_trainer(
            module,
            training,
            held_out,
            kept,
            keep_epochs=folder is not None,
            progress_bar=progress_bar,
            **trainer_params,
        )
        if held_out:
            losses["val_loss"], lesson = choose_weights(module, start, kept / "best.ckpt", held_out)
        else:
            network.load_state_dict(between(start, network.state_dict(), lesson.share))
    network.cpu().eval()
    return losses, lesson


def run_trainer(
    module: ForecastModule,
    training: DataLoader[Windows],
    held_out: DataLoader[Windows] | None,
    folder: Path,
    *,
    keep_epochs: bool,
    progress_bar: bool,
    callbacks: Sequence[Callback] = (),
    **trainer_params: Any,
) -> dict[str, float]:
    """Train a module, from the last epoch kept in the folder on; the best epoch ends there as ``best.ckpt``.

    Returns:
        The last losses.
    """
    config = module.training_config
    stops: list[Callback] = []
    if held_out:
        best = ModelCheckpoint(folder, "best", monitor="val_loss", enable_version_counter=False)
        stops = [EarlyStopping("val_loss", patience=config.patience), best]
    every = [ModelCheckpoint(folder, "last", enable_version_counter=False)] if keep_epochs else []
    options = {
        "accelerator": "auto" if torch.cuda.is_available() else "cpu",  # Apple's GPU lacks the float64 of scaling
        "devices": 1,
        "logger": False,
        "enable_checkpointing": bool(stops or every),
        "enable_model_summary": False,
        "enable_progress_bar": progress_bar,
        "max_epochs": config.max_epochs,
        "gradient_clip_val": GRADIENT_CLIP,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # each process draws windows of its own
        **trainer_params,
    }
    interrupted = folder / "last.ckpt"
    module.train()  # Lightning keeps the mode it finds
    with quiet_lightning():
        trainer = L.Trainer(callbacks=[*stops, *callbacks, *every], **options)
        trainer.fit(module, training, held_out, ckpt_path=interrupted if interrupted.exists() else None)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@contextmanager
def checkpoint_folder(folder: Path | None) -> Iterator[Path]:
    """Where checkpoints go: the given folder, emptied of them once training is complete, or a temporary one."""
    if folder is None:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for name in ("best.ckpt", "last.ckpt"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banners and advice: they speak to who writes trainers, not to who forecasts."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
