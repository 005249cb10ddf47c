"""Conformal intervals of a trained network, for each step ahead, from forecasts of rows that it was not trained on."""

import torch
from torch import Tensor

from xlstm_ts.backtesting import backtest_normalised
from xlstm_ts.calibration import widening_margins
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.windows import SeriesPool


@torch.inference_mode()
def calibrate_at(network: ForecastNetwork, pool: SeriesPool, series: Tensor, origins: Tensor) -> None:
    """Set a network's margins of each step ahead, from its forecasts at the given origins (M,) of a pool.

    Raises:
        ValueError: a step has no value to calibrate on.
    """
    sizes = network.config
    network.margins.zero_()
    rows = pool.windows(series, origins, before=0, after=sizes.horizon).rows
    forecast = torch.zeros(*rows.values.shape, len(sizes.quantiles))
    target = torch.zeros(rows.values.shape)
    for index, quantiles, scale in backtest_normalised(network, pool, series, origins):
        forecast[index] = quantiles.cpu()
        loc, unit = scale.loc[:, 0].cpu(), scale.scale[:, 0].cpu()
        target[index] = ((rows.values[index] - loc) / unit).float()
    for step in range(sizes.horizon):
        counted = rows.seen[:, step]
        if not counted.any():
            raise ValueError(f"no origin has a value {step + 1} steps ahead to calibrate on: pass more rows")
        margins = widening_margins(forecast[counted, step], target[counted, step], sizes.quantiles)
        network.margins[step] = margins
