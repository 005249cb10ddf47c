"""Forecasts of a window's tokens beside what came true after each.

Shapes: B batch, S tokens, H horizon, Q quantiles.
"""

from typing import NamedTuple

from torch import Tensor

from xlstm_ts.network import ForecastNetwork
from xlstm_ts.windows import Windows


class Supervised(NamedTuple):
    """Forecasts and targets in units of each origin's scale.

    Attributes:
        forecast: quantiles (B, S, H, Q).
        target: (B, S, H), arbitrary where not counted.
        counted: (B, S, H) bool: the target exists, and a whole season lies before its origin, as at forecasting.
    """

    forecast: Tensor
    target: Tensor
    counted: Tensor


def supervise(network: ForecastNetwork, batch: Windows, *, origins: int) -> Supervised:
    """Forecast at the newest ``origins`` tokens of windows whose last ``horizon`` values are unknown to all of them."""
    sizes = network.config
    known = batch.values.shape[1] - sizes.horizon
    forecast, tokens, _ = network(batch.values[:, :known], batch.seen[:, :known], origins=origins)
    ahead = batch.values[:, sizes.reach :].unfold(1, sizes.horizon, sizes.patch_length)[:, -origins:]
    came = batch.seen[:, sizes.reach :].unfold(1, sizes.horizon, sizes.patch_length)[:, -origins:]
    has_season = tokens.seen[..., -sizes.season_lengths[0] :].all(-1, keepdim=True)
    return Supervised(forecast, tokens.scale.normalise(ahead), came & has_season)
