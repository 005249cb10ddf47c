"""Training with Lightning: quantile loss at every token, early stopping on held-out tails, calibrated intervals."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from xlstm_ts.calibration import calibrate
from xlstm_ts.linear_map import fit_linear_map
from xlstm_ts.loaders import (
    derived_seed,
    least_history,
    tail_loader,
    training_loader,
    validation_step,
    validation_tails,
)
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.preferences import fit_preferences, read_offers
from xlstm_ts.supervision import supervise
from xlstm_ts.training_config import TrainingConfig
from xlstm_ts.windows import SeriesPool, Windows

GRADIENT_CLIP = 1.0
# A correction of the linear map goes half the way that least squares would: what is found in one period holds only
# partly in the next.
CORRECTION_PENALTY = 1.0
WARM_UP = 0.15
# Steps ahead that one window trains on in all: long horizons train fewer of their tokens.
TARGETS_A_WINDOW = 4096
REHEARSED_HORIZONS = 2
SCORE = "xlstm_ts.val_loss"
REHEARSED_ORIGINS = 4  # within a horizon


class ForecastModule(L.LightningModule):
    """Loss and optimiser around a ``ForecastNetwork``."""

    def __init__(self, network: ForecastNetwork, config: TrainingConfig, *, least_history: int) -> None:
        super().__init__()
        self.network = network
        self.training_config = config
        self.least_history = least_history
        self.origins = max(1, min(config.context_tokens, TARGETS_A_WINDOW // network.config.horizon))

    def training_step(self, batch: Windows, batch_index: int) -> Tensor:
        penalty = CORRECTION_PENALTY if self.network.config.linear_lookback else 0.0
        loss = self.loss(batch, self.origins, penalty=penalty)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Windows, batch_index: int) -> None:
        self.log("val_loss", self.loss(batch, 1), prog_bar=True, batch_size=len(batch.unit))

    def configure_optimizers(self) -> Any:
        config = self.training_config
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=WARM_UP,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Windows, batch_index: int) -> None:
        # A training that is taken up again drops the same units as one that was not interrupted.
        torch.manual_seed(derived_seed(self.training_config.seed, self.global_step, self.global_rank))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[SCORE] = float(self.trainer.callback_metrics.get("val_loss", torch.nan))

    def loss(self, batch: Windows, origins: int, *, penalty: float = 0.0) -> Tensor:
        """Mean loss of the head over the steps ahead of the newest ``origins`` tokens.

        The penalty weighs the squared distance to the linear map's forecast.
        """
        part = supervise(self.network, batch, origins=origins, least_history=self.least_history)
        parameters, target, head = part.parameters, part.target, self.network.head
        ratio = torch.ones(())
        if self.training_config.loss_unit == "series" and head.rescales:
            ratio = (part.scale.scale / batch.unit[:, None, None]).float()
            parameters, target = parameters * ratio.unsqueeze(-1), target * ratio
        loss = head.loss(parameters, target, part.scale)
        if penalty:
            correction = head.centre(parameters, part.scale) - self.network.candidates.mapped(part.tokens) * ratio
            loss = loss + penalty * correction.square()
        return torch.where(part.counted, loss, 0.0).sum() / part.counted.sum().clamp(min=1)


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
    is too short to spare any, a rehearsal without the newest values calibrates, and the network then trains on all.

    Args:
        network: what to train.
        pool: the series.
        config: how.
        progress_bar: show Lightning's.
        trainer_params: more arguments for ``lightning.Trainer``, such as accelerator, devices or logger.
        folder: where each epoch leaves a checkpoint, to go on from after an interruption; None is nowhere.
        go_on: the network was trained on other data: what it began with stays.

    Returns:
        The last train_loss and, with held-out tails, the best val_loss.
    """
    sizes = network.config
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
    hold_out = partial(validation_tails, pool.lengths, horizon=sizes.horizon, season_length=sizes.season_lengths[0])
    tails = hold_out(config.val_size)
    if config.val_size and not tails.any():
        raise ValueError(f"val_size={config.val_size} leaves no series more than two seasons to train on: choose less")
    if tails.any():
        step = validation_step(tails, sizes.horizon)
        held_out = tail_loader(pool, tails, sizes, config, step=step)
        losses = fit(network, pool.without_tails(tails), held_out=held_out, folder=folder)
        calibrate(network, held_out, least_history=least)
        return losses
    rehearsal = copy.deepcopy(network)
    losses = fit(network, pool, folder=folder)
    tails = hold_out(REHEARSED_HORIZONS * sizes.horizon)
    if config.val_size is None and tails.any():
        fit(rehearsal, pool.without_tails(tails))
        step = max(1, sizes.horizon // REHEARSED_ORIGINS)
        calibrate(rehearsal, tail_loader(pool, tails, sizes, config, step=step), least_history=least)
        network.margins.copy_(rehearsal.margins)
        network.path_correlation.copy_(rehearsal.path_correlation)
    return losses


def set_prior(network: ForecastNetwork, pool: SeriesPool) -> None:
    """Tell a network what its series are like, for those of which it sees next to nothing: medians over all."""
    levels, unrests = [], []
    for start, stop, unit in zip(pool.starts.tolist(), pool.stops.tolist(), pool.units.tolist(), strict=True):
        values = pool.rows.values[0, start:stop][pool.rows.seen[0, start:stop]]
        if len(values) > 1:
            levels.append(float(values.mean()))
            unrests.append(unit / max(abs(levels[-1]), unit))
    if levels:
        network.prior_level.fill_(float(torch.tensor(levels, dtype=torch.float64).median()))
        network.prior_unrest.fill_(float(torch.tensor(unrests, dtype=torch.float64).median()))


def fit_network(
    network: ForecastNetwork,
    pool: SeriesPool,
    *,
    config: TrainingConfig,
    least: int,
    fresh: bool,
    held_out: DataLoader[Windows] | None = None,
    progress_bar: bool,
    trainer_params: Mapping[str, Any],
    folder: Path | None = None,
) -> dict[str, float]:
    """One run of the trainer; with held-out windows it ends with the weights that forecast them best.

    These may be the ones that it began with: training is kept as far as it helps.
    """
    training = training_loader(pool, network.config, config)
    if fresh:
        find_start(network, training, held_out, unit=config.loss_unit)
    module = ForecastModule(network.cpu(), config, least_history=least)
    untrained = copy.deepcopy(module.state_dict())
    at_first = validation_loss(module, held_out) if held_out else 0.0
    module.train()  # Lightning keeps the mode it finds
    with checkpoint_folder(folder) as kept, quiet_lightning():
        best = ModelCheckpoint(kept, "best", monitor="val_loss", enable_version_counter=False) if held_out else None
        options = {
            "accelerator": "auto" if torch.cuda.is_available() else "cpu",  # Apple's GPU lacks the float64 of scaling
            "devices": 1,
            "logger": False,
            "enable_checkpointing": bool(best or folder),
            "enable_model_summary": False,
            "enable_progress_bar": progress_bar,
            "max_epochs": config.max_epochs,
            "gradient_clip_val": GRADIENT_CLIP,
            "default_root_dir": kept,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,  # each process draws windows of its own
            **trainer_params,
        }
        callbacks: list[Callback] = options.pop("callbacks", [])
        if best:
            callbacks = [EarlyStopping("val_loss", patience=config.patience), best, *callbacks]
        if folder:
            callbacks = [*callbacks, ModelCheckpoint(kept, "last", enable_version_counter=False)]
        trainer = L.Trainer(callbacks=callbacks, **options)
        interrupted = kept / "last.ckpt"
        trainer.fit(
            module,
            training,
            held_out,
            ckpt_path=interrupted if interrupted.exists() else None,
        )
        losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if best:
            losses["val_loss"] = restore_best(module, kept / "best.ckpt")
            if at_first < losses["val_loss"]:
                module.load_state_dict(untrained)
                losses["val_loss"] = at_first
    network.cpu().eval()
    return losses


def find_start(
    network: ForecastNetwork, training: DataLoader[Windows], held_out: DataLoader[Windows] | None, *, unit: str
) -> None:
    """What training begins with: the linear map, solved for, where there is one; else the best mixture of the past."""
    candidates = network.candidates
    if network.config.linear_lookback:
        candidates.linear_map.copy_(fit_linear_map(training, held_out, network.config, unit=unit))
        return
    offers = read_offers(network.cpu(), training.dataset)
    network.decoder.prefer(fit_preferences(offers, torch.tensor(candidates.preferences)))


@torch.inference_mode()
def validation_loss(module: ForecastModule, held_out: DataLoader[Windows]) -> float:
    """The val_loss of a module as it is."""
    module.eval()
    losses = [(module.loss(batch, 1), len(batch.unit)) for batch in held_out]
    return float(sum(loss * count for loss, count in losses)) / sum(count for _, count in losses)


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


def restore_best(module: nn.Module, best: Path) -> float:
    """Load the weights of a checkpoint, and return their validation loss."""
    checkpoint = torch.load(best, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    return float(checkpoint[SCORE])


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
