"""The scikit-learn style face: frames of series in, frames of forecasts out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted

from xlstm_ts.backtesting import tail_window_origins
from xlstm_ts.conformal import calibrate_at
from xlstm_ts.fitting import FittedForecaster
from xlstm_ts.forecasting import forecast_quantiles, sample_paths
from xlstm_ts.inputs import to_long
from xlstm_ts.insight import attribution, half_lives
from xlstm_ts.outputs import MODEL, forecast_frame
from xlstm_ts.panel_memory import PanelMemory, bridge_gaps, go_on, to_pool
from xlstm_ts.parameters import check_count
from xlstm_ts.saving import load_forecaster, save_forecaster
from xlstm_ts.scoring import naive_unit, scaled_score
from xlstm_ts.streaming import Stream


class xLSTMForecaster(FittedForecaster):
    """Probabilistic forecasts of many series at once with one xLSTM network that remembers them.

    The network reads patches of recent values, scaled by their own past, into its recurrent state, and forecasts the
    distributions of all ``horizon`` next values directly, as a correction to a learned mixture of seasonal values.
    Its memory of a series is a value of fixed size: ``update`` advances it by new rows without looking back.

    Series come as a long frame, a wide frame, a Series or arrays (see ``xlstm_ts.inputs.to_long``); values may be
    missing (NaN), series may have any length from one row on.

    Args:
        horizon: steps ahead that are trained; predictions can go further.
        season_length: steps of a season, or several, the shortest first; None infers them from the timestamps
            (hourly: 24 and 168; monthly: 12), or from the values where times are integers.
        context_length: values that a training window reads beyond what its first token sees; None is 14 patches.
        linear_lookback: past values that a linear map, solved for in closed form, forecasts from, such as three weeks;
            the network starts from it and learns to correct it. For long horizons of few long series; 0 leaves it out.
        embedding_dim: width of the network.
        num_blocks: xLSTM blocks.
        num_heads: heads of each block; must divide ``embedding_dim``.
        dropout: share of block outputs dropped in training.
        head: ``quantile``, ``normal``, ``student_t``, ``negative_binomial`` (counts), or one value, trained on the
            squared error (``point``), ``absolute_error`` or ``huber``.
        loss_unit: measure errors in units of each ``origin``'s scale or of the whole ``series``'.
        batch_size: windows in a gradient step.
        max_epochs: epochs at most.
        steps_per_epoch: gradient steps in an epoch, each followed by validation; None is two passes over the data, at
            most 30 steps.
        learning_rate: peak of a one-cycle schedule that ends at zero.
        weight_decay: of AdamW.
        val_size: last values of every series held out for early stopping and for calibrating the intervals; 0 trains
            on everything to the end of the schedule, uncalibrated. None holds out a twentieth of all values, in tails
            of whole horizons; where that is less than one, a rehearsal without the newest values calibrates and tells
            how long to train, and training then uses all.
        patience: epochs without a better validation loss before training stops.
        random_state: int, RandomState or None, as in scikit-learn; an int makes the fit reproducible.
        progress_bar: show Lightning's progress bar.
        trainer_params: more arguments for ``lightning.Trainer``, such as ``{"accelerator": "gpu"}``.
        checkpoint_folder: where every epoch leaves a checkpoint: a fit that was interrupted goes on from there when it
            is called again, and a complete one leaves nothing. None keeps no checkpoints.
        freq: step of integer times, or pandas frequency; None infers it.
        fill_gaps: insert the rows that a series lacks, with missing values, instead of raising.
        static: names of covariates that never change within a series.
        known: names of covariates that are known ahead, such as holidays.
        past: names of covariates that are known up to now.
        id_col: column that names the series.
        ds_col: column of integers, timestamps or periods.
        y_col: column of values.

    Attributes:
        network_: the trained ``ForecastNetwork``.
        panel_: the series seen in ``fit``.
        memory_: what is remembered of each series, after ``update`` or ``load``.
        season_lengths_: seasons in use, in steps.
        losses_: train_loss and, with validation, the best val_loss, in units of ``loss_unit``.

    >>> from xlstm_ts import xLSTMForecaster
    >>> from xlstm_ts.datasets import load_air_passengers
    >>> forecast = xLSTMForecaster(horizon=12, random_state=0).fit(load_air_passengers()).predict(level=[50, 90])
    """

    def predict(
        self,
        df: Any = None,
        *,
        horizon: int | None = None,
        level: Sequence[float] = (80,),
        quantiles: Sequence[float] = (),
        future: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """Forecast the next values of every series.

        Args:
            df: series to continue, of the frequency seen in ``fit``, known or new; None continues those of ``fit``
                and ``update``.
            horizon: steps ahead; None is the trained horizon. Further ones go on from paths of the forecast itself.
            level: central prediction intervals in percent, each in (0, 98].
            quantiles: probabilities, each in [.01, .99].
            future: id, time and known covariates of the steps ahead.

        Returns:
            A long frame with the id and time columns, the median in "xLSTM", interval bounds in "xLSTM-lo-80",
            "xLSTM-hi-80" and so on, quantiles in "xLSTM-q-10"; times go on from each series' own last one.

        Raises:
            NotFittedError: ``fit`` has not been called.
            ValueError: ``level`` or ``quantiles`` is out of range; or a frame is not as described.
        """
        frame, remembered, ahead = self._continue(df, horizon, future)
        trained = forecast_quantiles(self.network_, remembered.memory, ahead).cpu().numpy()
        return forecast_frame(frame, trained, level, quantiles)

    def sample(
        self,
        df: Any = None,
        *,
        n: int = 100,
        horizon: int | None = None,
        future: pd.DataFrame | None = None,
        random_state: int = 0,
    ) -> pd.DataFrame:
        """Possible futures as whole paths: a long frame with a column "sample" from 0 to ``n`` - 1."""
        check_count("n", n, least=1)
        frame, remembered, ahead = self._continue(df, horizon, future, paths=True)
        paths = sample_paths(self.network_, remembered.memory, ahead, num_paths=n, seed=random_state)
        count, _, steps = paths.shape
        rows = np.arange(count * steps).reshape(count, 1, steps).repeat(n, 1).ravel()
        numbers = np.broadcast_to(np.arange(n)[:, None], (count, n, steps)).ravel()
        return frame.iloc[rows].assign(sample=numbers, **{MODEL: paths.cpu().numpy().ravel()}).reset_index(drop=True)

    def update(self, new_rows: Any) -> Self:
        """Read new rows into the memory, at a cost that does not depend on how much was read before.

        Forecasts afterwards are those from the whole history. Series that are new begin here. No weight changes.

        Raises:
            ValueError: the rows of a series do not begin right after its last one, and ``fill_gaps`` is not set.
        """
        check_is_fitted(self, "network_")
        remembered = self._memory()
        if self.fill_gaps:
            columns = self._columns()
            new_rows = bridge_gaps(remembered, to_long(new_rows, columns), columns)
        panel = self._read(new_rows, frequency=self._frequency())
        self.memory_ = go_on(self.network_, remembered, panel, self.encoder_)
        return self

    def stream(self, series: Any, *, adapt: float = 0.0) -> Stream:
        """One remembered series, to push single rows to; ``adapt`` lets its intervals follow their misses."""
        check_is_fitted(self, "network_")
        remembered = self._memory()
        at = remembered.position(series)
        one = remembered.memory.series(torch.tensor([at], device=self.network_.margins.device))
        single = PanelMemory(remembered.ids[[at]], [remembered.last_ds[at]], remembered.frequency, one)
        return Stream(self.network_, single, self.encoder_, adapt=adapt)

    def backtest(
        self,
        df: Any = None,
        *,
        n_windows: int | None = 1,
        step: int | None = None,
        level: Sequence[float] = (80,),
    ) -> pd.DataFrame:
        """Forecast the known end of series from earlier cut-offs, in one pass and with the weights as they are.

        Args:
            df: series; None is those of ``fit``.
            n_windows: cut-offs of each series, as far as it is long enough; None is all.
            step: rows between cut-offs; None is the horizon.
            level: as in ``predict``.

        Returns:
            As from ``predict``, with the columns "cutoff", the last time that was known, and ``y_col``.
        """
        panel = self._panel(df)
        step = self.network_.config.horizon if step is None else step
        check_count("step", step, least=1)
        if n_windows is not None:
            check_count("n_windows", n_windows, least=1)
        pool = to_pool(panel, self.encoder_)
        horizon = self.network_.config.horizon
        origins = tail_window_origins(pool, n_windows=n_windows, step=step, horizon=horizon)
        return self._forecasts_at(panel, *origins, steps=slice(0, horizon), level=level)

    def predict_insample(self, df: Any = None, *, lead: int = 1, level: Sequence[float] = (80,)) -> pd.DataFrame:
        """What was forecast for every row of a series ``lead`` steps before it: as from ``backtest``."""
        check_count("lead", lead, least=1)
        panel = self._panel(df)
        self._check_trained("lead", lead)
        origins = tail_window_origins(to_pool(panel, self.encoder_), n_windows=None, step=1, horizon=lead)
        return self._forecasts_at(panel, *origins, steps=slice(lead - 1, lead), level=level)

    def anomaly_scores(self, df: Any = None) -> pd.DataFrame:
        """How surprising every row was one step before: its normal score, 3 is as rare as 3 standard deviations.

        Returns:
            As from ``predict_insample``, with the score in "anomaly", positive above the median; NaN where missing.
        """
        panel = self._panel(df)
        origins = tail_window_origins(to_pool(panel, self.encoder_), n_windows=None, step=1, horizon=1)
        return self._forecasts_at(panel, *origins, steps=slice(0, 1), level=(80,), scored=True)

    def calibrate(self, df: Any = None, *, n_windows: int = 20, step: int | None = None) -> Self:
        """Split conformal intervals, for each step ahead, from backtests on rows that training did not see.

        Args:
            df: series whose ends calibrate; None is those of ``fit``.
            n_windows: cut-offs of each series.
            step: rows between them; None is the horizon.
        """
        panel = self._panel(df)
        pool = to_pool(panel, self.encoder_)
        horizon = self.network_.config.horizon
        series, origins = tail_window_origins(pool, n_windows=n_windows, step=step or horizon, horizon=horizon)
        calibrate_at(self.network_, pool, series, origins)
        return self

    def score(self, df: Any, y: None = None) -> float:
        """The negative mean absolute scaled error of forecasts of these rows; larger is better, 0 is perfect.

        Rows that follow those of ``fit`` and ``update`` are forecast from there; of other series, the last
        ``horizon`` rows from the rows before. Errors are in units of seasonal naive's in the series' history.
        """
        check_is_fitted(self, "network_")
        columns = self._columns()
        panel = self._read(df, frequency=self._frequency())
        actual = panel.index_frame(columns).assign(**{columns.y: panel.values})
        season = self.season_lengths_[0]
        if self._follows(panel):
            future = actual.join(panel.covariates) if columns.known else None
            forecast = self.predict(horizon=int(panel.lengths.max()), future=future)
            history = self._panel(None)
        else:
            forecast, history = self.backtest(df), panel
        rows = np.split(history.values, history.stops[:-1])
        units = {name: naive_unit(values, season) for name, values in zip(history.ids, rows, strict=True)}
        return scaled_score(forecast.drop(columns=columns.y, errors="ignore"), actual, pd.Series(units), columns)

    def half_lives(self, df: Any = None, *, series: Any = None) -> np.ndarray:
        """Rows after which half of what each unit remembers is forgotten, on average over a series: (blocks, units)."""
        panel = self._panel(df)
        return half_lives(self.network_, to_pool(panel, self.encoder_), panel.position(series)).numpy(force=True)

    def attribution(self, df: Any = None, *, series: Any = None, step: int = 1) -> pd.Series:
        """By how much the forecast ``step`` steps ahead moves when a past value moves by one, by its time."""
        check_count("step", step, least=1)
        panel = self._panel(df)
        self._check_trained("step", step)
        at = panel.position(series)
        moved = attribution(self.network_, to_pool(panel, self.encoder_), at, step=step).numpy()
        name = f"{panel.ids[at]}, {step} steps ahead"
        return pd.Series(moved, panel.times[panel.stops[at] - panel.lengths[at] : panel.stops[at]], name=name)

    def plot(self, series: Any = None, *, level: Sequence[float] = (50, 80, 95), last: int | None = None) -> Any:
        """Fan chart of one series of ``fit`` and its forecast; see ``xlstm_ts.plotting.plot_forecast``."""
        from xlstm_ts.plotting import plot_forecast

        panel, columns = self._panel(None), self._columns()
        history = panel.index_frame(columns).assign(**{columns.y: panel.values})
        return plot_forecast(
            history,
            self.predict(level=level),
            series=series,
            last=last,
            id_col=columns.id,
            ds_col=columns.ds,
            y_col=columns.y,
        )

    def save(self, folder: str | Path) -> None:
        """Write weights, states and settings to a folder: safetensors and JSON."""
        check_is_fitted(self, "network_")
        parameters = {
            name: value
            for name, value in self.get_params().items()
            if name not in ("trainer_params", "checkpoint_folder")
        }
        save_forecaster(
            folder,
            parameters=parameters,
            network=self.network_,
            encoder=self.encoder_,
            remembered=self._memory(),
            losses=self.losses_,
        )

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """The forecaster that ``save`` wrote, with its memory but without the rows of ``fit``."""
        parameters, network, encoder, remembered, losses = load_forecaster(folder, device)
        forecaster = cls(**parameters)
        forecaster._set_fitted(network, encoder, losses, None)
        forecaster.memory_ = remembered
        return forecaster
