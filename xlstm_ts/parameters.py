"""What a forecaster's users choose: the parameters, their checks, and the configs that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from xlstm_ts.covariates import CovariateEncoder
from xlstm_ts.frames import Columns, Panel
from xlstm_ts.frequency import infer_season_lengths
from xlstm_ts.heads import HEADS
from xlstm_ts.network import NetworkConfig
from xlstm_ts.quantiles import TRAINED_QUANTILES
from xlstm_ts.seasons import detect_season_lengths
from xlstm_ts.training_config import LOSS_UNITS, TrainingConfig

DEFAULT_CONTEXT_PATCHES = 14  # two weeks of daily patches; 7, 21 and 28 measured no better on M4 Hourly
PATCH_RANGE = (4, 24)


class ForecasterParameters(BaseEstimator):
    """The parameters of ``xLSTMForecaster``, stored as given and checked when it is fitted."""

    def __init__(
        self,
        horizon: int = 1,
        *,
        season_length: int | Sequence[int] | None = None,
        context_length: int | None = None,
        linear_lookback: int = 0,
        embedding_dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        head: str = "quantile",
        loss_unit: str = "origin",
        batch_size: int = 32,
        max_epochs: int = 20,
        steps_per_epoch: int | None = None,
        learning_rate: float = 5e-3,
        weight_decay: float = 0.01,
        val_size: int | None = None,
        patience: int = 8,
        random_state: int | np.random.RandomState | None = None,
        progress_bar: bool = False,
        trainer_params: Mapping[str, Any] | None = None,
        checkpoint_folder: str | Path | None = None,
        freq: int | str | None = None,
        fill_gaps: bool = False,
        static: Sequence[str] = (),
        known: Sequence[str] = (),
        past: Sequence[str] = (),
        id_col: str = "unique_id",
        ds_col: str = "ds",
        y_col: str = "y",
    ) -> None:
        self.horizon = horizon
        self.season_length = season_length
        self.context_length = context_length
        self.linear_lookback = linear_lookback
        self.embedding_dim = embedding_dim
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.dropout = dropout
        self.head = head
        self.loss_unit = loss_unit
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.steps_per_epoch = steps_per_epoch
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.val_size = val_size
        self.patience = patience
        self.random_state = random_state
        self.progress_bar = progress_bar
        self.trainer_params = trainer_params
        self.checkpoint_folder = checkpoint_folder
        self.freq = freq
        self.fill_gaps = fill_gaps
        self.static = static
        self.known = known
        self.past = past
        self.id_col = id_col
        self.ds_col = ds_col
        self.y_col = y_col

    def _columns(self) -> Columns:
        kinds = (self.static, self.known, self.past)
        static, known, past = (tuple([kind] if isinstance(kind, str) else kind) for kind in kinds)
        return Columns(self.id_col, self.ds_col, self.y_col, static, known, past)

    def _check_parameters(self) -> None:
        """Raise ValueError for the first parameter out of range."""
        for name in ("horizon", "batch_size", "max_epochs", "patience"):
            check_count(name, getattr(self, name), least=1)
        check_count("linear_lookback", self.linear_lookback, least=0)
        for name, least in (("steps_per_epoch", 1), ("context_length", 1), ("val_size", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=least)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        for name, choices in (("head", HEADS), ("loss_unit", LOSS_UNITS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        names = self._columns().covariates
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"covariate {twice!r} is named twice: a covariate is static, known or past")
        for option in ("id_col", "ds_col", "y_col"):
            if getattr(self, option) in names:
                raise ValueError(
                    f"covariate {getattr(self, option)!r} is the {option} already: copy it under a new name"
                )

    def _season_lengths(self, panel: Panel) -> tuple[int, ...]:
        """Seasons in steps, ascending: those given, else the frequency's usual ones, else those found in the values."""
        if self.season_length is None:
            if isinstance(panel.frequency, str):
                return infer_season_lengths(panel.frequency)
            return detect_season_lengths(panel.values, panel.lengths)
        given = np.atleast_1d(np.asarray(self.season_length, dtype=object)).tolist()
        for season in given:
            check_count("season_length", season, least=1)
        if not given or sorted(set(given)) != given:
            raise ValueError(f"season_length must be one or more ascending lengths, got {self.season_length}")
        return tuple(given)

    def _network_config(self, season_lengths: tuple[int, ...], encoder: CovariateEncoder) -> NetworkConfig:
        columns = encoder.columns
        return NetworkConfig(
            horizon=self.horizon,
            season_lengths=season_lengths,
            quantiles=TRAINED_QUANTILES,
            patch_length=int(np.clip(season_lengths[0], *PATCH_RANGE)),
            embedding_dim=self.embedding_dim,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            linear_lookback=self.linear_lookback,
            dropout=self.dropout,
            head=self.head,
            static=encoder.sizes(columns.static),
            known=encoder.sizes(columns.known),
            past=encoder.sizes(columns.past),
        )

    def _training_config(self, patch_length: int, seed: int) -> TrainingConfig:
        given = self.context_length
        return TrainingConfig(
            context_tokens=DEFAULT_CONTEXT_PATCHES if given is None else -(-given // patch_length),
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            steps_per_epoch=self.steps_per_epoch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            loss_unit=self.loss_unit,
            val_size=self.val_size,
            patience=self.patience,
            seed=seed,
        )


def check_count(name: str, value: Any, *, least: int) -> None:
    """Raise ValueError unless the value is an integer and at least so much."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
