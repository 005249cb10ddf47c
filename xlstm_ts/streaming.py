"""One series as it comes in: every row costs the same, however many came before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from xlstm_ts.adaptation import Adaptation, issue, no_adaptation, observe, widen
from xlstm_ts.covariates import CovariateEncoder
from xlstm_ts.forecasting import forecast_quantiles
from xlstm_ts.frequency import next_time
from xlstm_ts.memory import advance, newest
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.outputs import forecast_frame
from xlstm_ts.panel_memory import PanelMemory, rows_ahead
from xlstm_ts.rows import Rows, to_rows


class Snapshot(NamedTuple):
    """All that a stream remembers, as a value."""

    remembered: PanelMemory
    adaptation: Adaptation


class Stream:
    """A single series that goes on row by row; it forecasts as if its whole history were read again.

    Made by ``xLSTMForecaster.stream``; what it reads does not reach the forecaster.

    Args:
        network, remembered, encoder: of the forecaster, and of this series alone.
        adapt: how fast intervals follow the misses of the forecasts that were asked for, as a share of the series'
            scale a miss; 0 leaves them as they were calibrated.

    >>> stream = forecaster.stream("AirPassengers")
    >>> before = stream.snapshot()
    >>> stream.push(417.0)
    >>> stream.forecast(level=[80])
    >>> stream.restore(before)                # as if nothing had been pushed
    """

    def __init__(
        self, network: ForecastNetwork, remembered: PanelMemory, encoder: CovariateEncoder, *, adapt: float = 0.0
    ) -> None:
        if not adapt >= 0:
            raise ValueError(f"adapt must be >= 0, got {adapt}")
        self._network, self._encoder, self._rate = network, encoder, adapt
        self._remembered = remembered
        self._adaptation = no_adaptation(network.config.horizon)

    @property
    def last_ds(self) -> Any:
        """The point in time of the newest row."""
        return self._remembered.last_ds[0]

    def push(self, y: float | None, covariates: Mapping[str, Any] | None = None) -> None:
        """Read the next row.

        Args:
            y: its value; None or NaN where it is missing.
            covariates: value of each known and past covariate; static ones stay.

        Raises:
            ValueError: ``y`` is infinite, or a covariate is missing.
        """
        value = float("nan") if y is None else float(y)
        if value in (float("inf"), float("-inf")):
            raise ValueError(f"y must be finite, or NaN where it is missing, got {value}")
        rows = self._row(value, dict(covariates or {}))
        memory, _ = advance(self._network, self._remembered.memory, rows)
        now = next_time(self.last_ds, self._remembered.frequency)
        self._remembered = replace(self._remembered, last_ds=[now], memory=memory)
        self._adaptation = observe(self._adaptation, value, self._rate)

    def forecast(
        self, horizon: int | None = None, *, level: Sequence[float] = (80,), future: pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """The next values, as ``xLSTMForecaster.predict`` returns them."""
        steps = self._network.config.horizon if horizon is None else horizon
        frame, ahead = rows_ahead(self._network, self._remembered, steps, self._encoder, future)
        quantiles = forecast_quantiles(self._network, self._remembered.memory, ahead).cpu().numpy()[0]
        if self._rate:
            unit = float(newest(self._network, self._remembered.memory).tokens.scale.scale)
            quantiles = widen(self._adaptation, quantiles, unit)
            self._adaptation = issue(self._adaptation, quantiles, unit)
        return forecast_frame(frame, quantiles, level)

    def snapshot(self) -> Snapshot:
        """All that the stream remembers, as a value."""
        return Snapshot(self._remembered, self._adaptation)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to what ``snapshot`` returned."""
        self._remembered, self._adaptation = snapshot

    def _row(self, value: float, covariates: dict[str, Any]) -> Rows:
        columns, values = self._encoder.columns, np.array([value])
        needed = (*columns.known, *columns.past)
        missing = [name for name in needed if name not in covariates]
        if missing:
            raise ValueError(f"covariate {missing[0]!r} is missing: pass covariates={{{missing[0]!r}: ...}}")
        if not columns.covariates:
            return to_rows(values).move(self._network.margins.device)
        frame = pd.DataFrame({name: [covariates[name]] for name in needed}, index=[0])
        numeric, categories = self._encoder.transform(frame, absent=columns.static)
        rows = to_rows(values, numeric, categories).move(self._network.margins.device)
        buffer, sizes = self._remembered.memory.buffer, self._network.config.static
        numbers, codes = sizes.numeric, len(sizes.cardinalities)
        return rows._replace(
            numeric=torch.cat([buffer.numeric[:, -1:, :numbers], rows.numeric[..., numbers:]], -1),
            categories=torch.cat([buffer.categories[:, -1:, :codes], rows.categories[..., codes:]], -1),
        )
