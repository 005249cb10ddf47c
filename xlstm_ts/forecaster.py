"""The scikit-learn style face: a frame of series in, a frame of forecasts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from xlstm_ts.frames import Columns, Panel, read_panel
from xlstm_ts.frequency import infer_season_lengths
from xlstm_ts.inference import forecast_quantiles
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.quantiles import TRAINED_QUANTILES, interpolate_quantiles, level_to_quantiles
from xlstm_ts.seasons import detect_season_lengths
from xlstm_ts.training_config import TrainingConfig
from xlstm_ts.windows import SeriesPool

DEFAULT_CONTEXT_PATCHES = 14  # two weeks of daily patches; 7, 21 and 28 measured no better on M4 Hourly
PATCH_RANGE = (4, 24)


class xLSTMForecaster(BaseEstimator):
    """Probabilistic forecasts of many series at once with one xLSTM network.

    The network reads patches of recent values, scaled by their own past, into its recurrent state, and forecasts the
    quantiles of all ``horizon`` next values directly, as a correction to a learned mixture of seasonal values.

    Args:
        horizon: steps ahead to forecast.
        season_length: steps of a season, or several, the shortest first; None infers them from the timestamps
            (hourly: 24 and 168; monthly: 12), or from the values where times are integers.
        context_length: values that a training window reads beyond what its first token sees; None is 14 patches.
        embedding_dim: width of the network.
        num_blocks: xLSTM blocks.
        num_heads: heads of each block; must divide ``embedding_dim``.
        dropout: share of block outputs dropped in training.
        batch_size: windows in a gradient step.
        max_epochs: epochs at most.
        steps_per_epoch: gradient steps in an epoch, each followed by validation; None is two passes over the data, at
            most 30 steps.
        learning_rate: peak of a one-cycle schedule that ends at zero.
        weight_decay: of AdamW.
        val_size: last values of every series held out for early stopping and for calibrating the intervals; 0 trains
            on everything to the end of the schedule, uncalibrated. None holds out a twentieth of all values, in tails
            of whole horizons; where that is less than one, a rehearsal without the newest values calibrates, and
            training then uses all.
        patience: epochs without a better validation loss before training stops.
        random_state: int, RandomState or None, as in scikit-learn; an int makes the fit reproducible.
        progress_bar: show Lightning's progress bar.
        trainer_params: more arguments for ``lightning.Trainer``, such as ``{"accelerator": "gpu"}``.
        id_col: column that names the series.
        ds_col: column of integers or timestamps.
        y_col: column of values.

    Attributes:
        network_: the trained ``ForecastNetwork``.
        panel_: the series seen in ``fit``, which ``predict()`` continues.
        season_lengths_: seasons in use, in steps.
        losses_: train_loss and, with validation, the best val_loss, in units of each window's scale.

    >>> from xlstm_ts import xLSTMForecaster
    >>> from xlstm_ts.datasets import load_air_passengers
    >>> forecast = xLSTMForecaster(horizon=12, random_state=0).fit(load_air_passengers()).predict(level=[50, 90])
    """

    def __init__(
        self,
        horizon: int,
        *,
        season_length: int | Sequence[int] | None = None,
        context_length: int | None = None,
        embedding_dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
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
        id_col: str = "unique_id",
        ds_col: str = "ds",
        y_col: str = "y",
    ) -> None:
        self.horizon = horizon
        self.season_length = season_length
        self.context_length = context_length
        self.embedding_dim = embedding_dim
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.dropout = dropout
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
        self.id_col = id_col
        self.ds_col = ds_col
        self.y_col = y_col

    def fit(self, df: pd.DataFrame, y: None = None) -> xLSTMForecaster:
        """Train on a long frame of series.

        Args:
            df: one row for every series and point in time, in any order, without gaps or missing values; ragged
                lengths are fine.
            y: ignored; scikit-learn's pipelines pass it.

        Returns:
            The fitted forecaster.

        Raises:
            TypeError: ``df`` is no DataFrame.
            ValueError: a parameter is out of range; or the frame is not as described, with the series, column and row.
        """
        from xlstm_ts.training import train  # Lightning takes seconds to import, forecasting does without

        self._check_parameters()
        panel = read_panel(df, self._columns())
        season_lengths = self._season_lengths(panel)
        panel.require_length(season_lengths[0] + 1, "fit (one season and a value to forecast)")
        seed = int(check_random_state(self.random_state).randint(2**31))
        # Global random states are the caller's: torch's is put back, NumPy's is never touched.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = ForecastNetwork(self._network_config(season_lengths))
            config = self._training_config(network.config.patch_length, seed)
            pool = SeriesPool.from_lengths(panel.values, panel.lengths)
            losses = train(network, pool, config, progress_bar=self.progress_bar, trainer_params=self.trainer_params)
        self.panel_, self.network_, self.season_lengths_, self.losses_ = panel, network, season_lengths, losses
        return self

    def predict(self, df: pd.DataFrame | None = None, *, level: Sequence[float] = (80,)) -> pd.DataFrame:
        """Forecast the next ``horizon`` values of every series.

        Args:
            df: series to continue, of the frequency seen in ``fit``, known or new; None continues those of ``fit``.
            level: central prediction intervals in percent, each in (0, 98].

        Returns:
            A long frame with the id and time columns, the median in "xLSTM" and interval bounds in "xLSTM-lo-80",
            "xLSTM-hi-80" and so on; times go on from each series' own last one.

        Raises:
            NotFittedError: ``fit`` has not been called.
            ValueError: ``level`` is out of range; or the frame is not as in ``fit``.
        """
        check_is_fitted(self, "network_")
        bounds = {value: level_to_quantiles(value) for value in sorted(set(level))}
        panel = self.panel_ if df is None else read_panel(df, self._columns(), frequency=self.panel_.frequency)
        panel.require_length(self.season_lengths_[0], "predict (one season to continue)")
        pool = SeriesPool.from_lengths(panel.values, panel.lengths)
        sizes = self.network_.config
        trained = forecast_quantiles(self.network_, pool, context_tokens=self._context_tokens(sizes.patch_length))
        columns = {"xLSTM": trained[..., len(TRAINED_QUANTILES) // 2]}
        for value, probabilities in bounds.items():
            low, high = np.moveaxis(interpolate_quantiles(trained, probabilities), -1, 0)
            columns |= {f"xLSTM-lo-{value:g}": low, f"xLSTM-hi-{value:g}": high}
        future = panel.future_frame(sizes.horizon, self._columns())
        return future.assign(**{name: values.ravel() for name, values in columns.items()})

    def _columns(self) -> Columns:
        return Columns(self.id_col, self.ds_col, self.y_col)

    def _check_parameters(self) -> None:
        """Raise ValueError for the first parameter out of range."""
        for name in ("horizon", "batch_size", "max_epochs", "patience"):
            _check_count(name, getattr(self, name), least=1)
        for name, least in (("steps_per_epoch", 1), ("context_length", 1), ("val_size", 0)):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), least=least)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")

    def _season_lengths(self, panel: Panel) -> tuple[int, ...]:
        """Seasons in steps, ascending: those given, else the frequency's usual ones, else those found in the values."""
        if self.season_length is None:
            if isinstance(panel.frequency, str):
                return infer_season_lengths(panel.frequency)
            return detect_season_lengths(panel.values, panel.lengths)
        given = np.atleast_1d(np.asarray(self.season_length, dtype=object)).tolist()
        for season in given:
            _check_count("season_length", season, least=1)
        if not given or sorted(set(given)) != given:
            raise ValueError(f"season_length must be one or more ascending lengths, got {self.season_length}")
        return tuple(given)

    def _network_config(self, season_lengths: tuple[int, ...]) -> NetworkConfig:
        return NetworkConfig(
            horizon=self.horizon,
            season_lengths=season_lengths,
            quantiles=TRAINED_QUANTILES,
            patch_length=int(np.clip(season_lengths[0], *PATCH_RANGE)),
            embedding_dim=self.embedding_dim,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            dropout=self.dropout,
        )

    def _context_tokens(self, patch_length: int) -> int:
        if self.context_length is None:
            return DEFAULT_CONTEXT_PATCHES
        return -(-self.context_length // patch_length)

    def _training_config(self, patch_length: int, seed: int) -> TrainingConfig:
        return TrainingConfig(
            context_tokens=self._context_tokens(patch_length),
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            steps_per_epoch=self.steps_per_epoch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            val_size=self.val_size,
            patience=self.patience,
            seed=seed,
        )


def _check_count(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
