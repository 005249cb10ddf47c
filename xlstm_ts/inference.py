"""Forecasts of a trained network for every series of a pool."""

import numpy as np
import torch

from xlstm_ts.network import ForecastNetwork
from xlstm_ts.windows import SeriesPool

BATCH = 256


@torch.inference_mode()
def forecast_quantiles(network: ForecastNetwork, pool: SeriesPool, *, context_tokens: int) -> np.ndarray:
    """The trained quantiles of the ``horizon`` values after each series: (N, H, Q) float64 in units of the data.

    Args:
        network: in evaluation mode.
        pool: the series, N of them.
        context_tokens: tokens that are read before forecasting.
    """
    sizes = network.config
    before = sizes.reach + (context_tokens - 1) * sizes.patch_length
    parts = []
    for series in torch.arange(len(pool.stops)).split(BATCH):
        window = pool.windows(series, pool.stops[series], before=before)
        quantiles, tokens, _ = network(window.values, window.seen, origins=1)
        in_units = tokens.scale.restore(quantiles.flatten(2)).reshape(len(series), *quantiles.shape[2:])
        parts.append(in_units.numpy())
    return np.concatenate(parts)
