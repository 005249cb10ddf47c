"""What held-out forecasts teach about intervals and paths: how far too narrow, how errors hang together.

Shapes: M forecasts, H horizon, Q quantiles.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from xlstm_ts.forecasting import normal_scores
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.supervision import supervise
from xlstm_ts.windows import Windows

MOST_CORRELATED = 0.99


def widening_margins(forecast: Tensor, actual: Tensor, quantiles: Sequence[float]) -> Tensor:
    """What to add to every quantile so that each central interval covers its share of ``actual``.

    Conformalised quantile regression (Romano et al., 2019), except that intervals never shrink and wider ones get no
    smaller margin, so that quantiles still cannot cross. The median stays.

    Args:
        forecast: quantiles (M, Q) of values that training did not see.
        actual: those values (M,).
        quantiles: the Q probabilities, symmetric around 0.5.

    Returns:
        Margins (Q,), negative below the median, in the units of ``forecast``.

    >>> widening_margins(torch.tensor([[4.0, 5.0, 6.0]]), torch.tensor([8.0]), (0.1, 0.5, 0.9))
    tensor([-2.,  0.,  2.])
    """
    middle = len(quantiles) // 2
    below, above = forecast[:, :middle].flip(1), forecast[:, middle + 1 :]  # both from the median outwards
    outside = torch.maximum(below - actual[:, None], actual[:, None] - above)  # (M, middle)
    # The rank n + 1 corrects for the few values that calibrate.
    ranks = [min(len(actual), math.ceil((2 * p - 1) * (len(actual) + 1))) for p in quantiles[middle + 1 :]]
    needed = torch.stack([outside[:, k].kthvalue(rank).values for k, rank in enumerate(ranks)])
    margins = needed.clamp(min=0).cummax(0).values
    return torch.cat([-margins.flip(0), margins.new_zeros(1), margins])


def step_correlation(forecast: Tensor, actual: Tensor, counted: Tensor, quantiles: Sequence[float]) -> Tensor:
    """How much the error of a step resembles that of the step before: correlation of normal scores, in [0, 0.99].

    Args:
        forecast: quantiles (M, H, Q).
        actual: (M, H).
        counted: bool (M, H).
        quantiles: the Q probabilities.
    """
    grid = normal_scores(quantiles).to(forecast)
    right = torch.searchsorted(forecast.contiguous(), actual.unsqueeze(-1)).clamp(1, len(grid) - 1)
    low, high = forecast.gather(-1, right - 1), forecast.gather(-1, right)
    share = (actual.unsqueeze(-1) - low) / (high - low).clamp(min=1e-6)
    scores = torch.lerp(grid[right - 1], grid[right], share.clamp(-1, 2)).squeeze(-1)
    both = counted[:, 1:] & counted[:, :-1]
    before, after = scores[:, :-1][both], scores[:, 1:][both]
    product = (before * after).sum() / (before.square().sum() * after.square().sum()).sqrt().clamp(min=1e-6)
    return product.clamp(0, MOST_CORRELATED)


@torch.inference_mode()
def calibrate(network: ForecastNetwork, held_out: Iterable[Windows], *, least_history: int) -> None:
    """Set a network's margins and path correlation from windows that it was not trained on, in evaluation mode."""
    network.margins.zero_()
    forecasts, actuals, counts = [], [], []
    for batch in held_out:
        part = supervise(network, batch, origins=1, least_history=least_history)
        forecasts.append(network.quantiles(part.parameters, part.scale).flatten(0, 1))
        actuals.append(part.target.flatten(0, 1))
        counts.append(part.counted.flatten(0, 1))
    forecast, actual, counted = torch.cat(forecasts), torch.cat(actuals), torch.cat(counts)
    if counted.any():
        network.margins.copy_(widening_margins(forecast[counted], actual[counted], network.config.quantiles))
        calibrated = forecast + network.margins
        network.path_correlation.copy_(step_correlation(calibrated, actual, counted, network.config.quantiles))
