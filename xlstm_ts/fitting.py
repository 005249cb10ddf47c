"""What a forecaster learns, and how its memory, its network and frames are put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from xlstm_ts.backtesting import backtest_quantiles
from xlstm_ts.covariates import CovariateEncoder
from xlstm_ts.extras import named_extra
from xlstm_ts.frames import Panel, read_panel
from xlstm_ts.frequency import Frequency, next_times
from xlstm_ts.inputs import to_long
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.outputs import forecast_columns, normal_score
from xlstm_ts.panel_memory import PanelMemory, remember, rows_ahead, to_pool
from xlstm_ts.parameters import ForecasterParameters, check_count
from xlstm_ts.rows import Rows


class FittedForecaster(ForecasterParameters):
    """``fit`` and what follows from it; ``xLSTMForecaster`` adds what users ask of a fitted forecaster."""

    network_: ForecastNetwork
    encoder_: CovariateEncoder
    panel_: Panel
    memory_: PanelMemory
    losses_: dict[str, float]

    def fit(self, df: Any, y: None = None) -> Self:
        """Train on series.

        Args:
            df: the series, with the columns of all covariates.
            y: ignored; scikit-learn's pipelines pass it.

        Returns:
            The fitted forecaster.

        Raises:
            TypeError: ``df`` is nothing that holds series.
            ValueError: a parameter is out of range; or the data is not as described, with the series, column and row.
        """
        self._check_parameters()
        panel = self._read(df, frequency=self.freq)
        if np.isnan(panel.values).all():
            raise ValueError(f"column {self.y_col!r} holds no value, only missing ones: there is nothing to learn from")
        encoder = CovariateEncoder.fit(panel.covariates, self._columns())
        season_lengths = self._season_lengths(panel)
        if self.head == "negative_binomial":
            others = panel.values[(panel.values < 0) | (panel.values % 1 > 0)]
            if len(others):
                raise ValueError(f"head='negative_binomial' needs counts, got the value {others[0]}")
        seed = int(check_random_state(self.random_state).randint(2**31))
        # Global random states are the caller's: torch's is put back, NumPy's is never touched.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = ForecastNetwork(self._network_config(season_lengths, encoder))
            losses = self._train(network, panel, encoder, seed)
        self._set_fitted(network, encoder, losses, panel)
        columns = self._columns()
        self.feature_names_in_ = np.array([columns.id, columns.ds, columns.y, *columns.covariates], dtype=object)
        return self

    def partial_fit(self, df: Any, y: None = None) -> Self:
        """Go on training on these series, from the weights that ``fit`` left; predictions then continue them."""
        if not hasattr(self, "network_"):
            return self.fit(df)
        self._check_parameters()
        panel = self._read(df, frequency=self._frequency())
        seed = int(check_random_state(self.random_state).randint(2**31))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            losses = self._train(self.network_, panel, self.encoder_, seed, go_on=True)
        self._set_fitted(self.network_, self.encoder_, losses, panel)
        return self

    @named_extra()
    def _train(
        self, network: ForecastNetwork, panel: Panel, encoder: CovariateEncoder, seed: int, *, go_on: bool = False
    ) -> dict[str, float]:
        from xlstm_ts.training import train  # Lightning takes seconds to import, forecasting does without

        config = self._training_config(network.config.patch_length, seed)
        pool = to_pool(panel, encoder)
        return train(
            network,
            pool,
            config,
            progress_bar=self.progress_bar,
            trainer_params=self.trainer_params,
            folder=None if self.checkpoint_folder is None else Path(self.checkpoint_folder),
            go_on=go_on,
        )

    def _set_fitted(
        self, network: ForecastNetwork, encoder: CovariateEncoder, losses: dict[str, float], panel: Panel | None
    ) -> None:
        """Take over what was learned, and forget what was remembered with other weights."""
        self.network_, self.encoder_, self.losses_ = network, encoder, losses
        self.season_lengths_ = network.config.season_lengths
        for name in ("panel_", "memory_", "_read_memory"):
            self.__dict__.pop(name, None)
        if panel is not None:
            self.panel_ = panel

    def _read(self, df: Any, *, frequency: Any) -> Panel:
        columns = self._columns()
        return read_panel(to_long(df, columns), columns, frequency=frequency, fill_gaps=self.fill_gaps)

    def _panel(self, df: Any) -> Panel:
        """The series of ``df``, or those of ``fit``."""
        check_is_fitted(self, "network_")
        if df is not None:
            return self._read(df, frequency=self._frequency())
        if not hasattr(self, "panel_"):
            raise ValueError("a loaded forecaster holds no rows, only what it remembers of them: pass whole series")
        return self.panel_

    def _check_trained(self, name: str, steps: int) -> None:
        """Raise ValueError for more steps ahead than were trained."""
        if steps > self.network_.config.horizon:
            raise ValueError(f"{name} must be at most the horizon {self.network_.config.horizon}, got {steps}")

    def _frequency(self) -> Frequency:
        """The frequency of the series that were fitted."""
        return self.panel_.frequency if hasattr(self, "panel_") else self.memory_.frequency

    def _memory(self) -> PanelMemory:
        """What is remembered, ready to go on; read from the rows of ``fit`` when it is first asked for, then kept."""
        if hasattr(self, "memory_"):
            return self.memory_
        if not hasattr(self, "_read_memory"):
            self._read_memory = remember(self.network_, self.panel_, self.encoder_, to_go_on=True)
        return self._read_memory

    def _continue(
        self, df: Any, horizon: int | None, future: pd.DataFrame | None, *, paths: bool = False
    ) -> tuple[pd.DataFrame, PanelMemory, Rows]:
        """The rows ahead as a frame, the memory that they continue, and their covariates."""
        check_is_fitted(self, "network_")
        trained = self.network_.config.horizon
        steps = trained if horizon is None else horizon
        check_count("horizon", steps, least=1)
        if df is None and (hasattr(self, "memory_") or steps > trained):
            remembered = self._memory()
        else:
            remembered = remember(self.network_, self._panel(df), self.encoder_, to_go_on=steps > trained)
        frame, ahead = rows_ahead(self.network_, remembered, steps, self.encoder_, future)
        return frame, remembered, ahead

    def _follows(self, panel: Panel) -> bool:
        """Whether these rows are of remembered series and begin right after their last ones."""
        if hasattr(self, "memory_"):
            ids, last = self.memory_.ids, self.memory_.last_ds
        else:
            ids, last = self.panel_.ids, self.panel_.last_ds
        expected = dict(zip(ids, next_times(last, panel.frequency), strict=True))
        firsts = zip(panel.ids, panel.times[panel.stops - panel.lengths], strict=True)
        return all(name in expected and first == expected[name] for name, first in firsts)

    def _forecasts_at(
        self,
        panel: Panel,
        series: Tensor,
        origins: Tensor,
        *,
        steps: slice,
        level: Sequence[float],
        scored: bool = False,
    ) -> pd.DataFrame:
        """Forecasts of some steps ahead after each origin (M,), beside what came true."""
        columns, offsets = self._columns(), np.arange(self.network_.config.horizon)[steps]
        found: dict[str, np.ndarray] = {}
        rows = (origins.numpy()[:, None] + offsets).ravel()
        pool = to_pool(panel, self.encoder_)
        for index, quantiles in backtest_quantiles(self.network_, pool, series, origins):
            trained = quantiles[:, steps].numpy()
            parts = forecast_columns(trained, level)
            if scored:
                actual = panel.values[(origins[index].numpy()[:, None] + offsets).ravel()]
                parts = {"anomaly": normal_score(trained.reshape(len(actual), -1), actual), **parts}
            for name, part in parts.items():
                whole = found.setdefault(name, np.empty((len(origins), len(offsets))))
                whole[index.numpy()] = part.reshape(len(index), -1)
        repeats = len(offsets)
        frame = pd.DataFrame(
            {
                columns.id: np.repeat(panel.ids[series.numpy()], repeats),
                columns.ds: panel.times[rows],
                "cutoff": panel.times[np.repeat(origins.numpy() - 1, repeats)],
                columns.y: panel.values[rows],
            }
        )
        return frame.assign(**{name: whole.ravel() for name, whole in found.items()})
