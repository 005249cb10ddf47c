"""Forecasts of a pool come back in units of the data, series by series."""

import numpy as np
import torch

from xlstm_ts.inference import forecast_quantiles
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.windows import SeriesPool

SIZES = NetworkConfig(
    horizon=5, season_lengths=(4,), quantiles=(0.1, 0.5, 0.9), patch_length=4, embedding_dim=8, num_heads=2
)


def test_forecasts_keep_the_order_of_the_series_and_their_levels() -> None:
    torch.manual_seed(0)
    network = ForecastNetwork(SIZES).eval()
    rng = np.random.default_rng(0)
    pool = SeriesPool.from_lengths(np.concatenate([rng.normal(100, 1, 20), rng.normal(-50, 1, 9)]), np.array([20, 9]))

    quantiles = forecast_quantiles(network, pool, context_tokens=3)

    assert quantiles.shape == (2, 5, 3)
    np.testing.assert_allclose(quantiles.mean((1, 2)), [100, -50], atol=5)
