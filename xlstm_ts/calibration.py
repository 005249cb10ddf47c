"""Margins that widen intervals to the coverage they promise, from forecasts of values that were held out."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from xlstm_ts.network import ForecastNetwork
from xlstm_ts.supervision import supervise
from xlstm_ts.windows import Windows


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
    shares = [min(1.0, (2 * p - 1) * (1 + 1 / len(actual))) for p in quantiles[middle + 1 :]]
    needed = torch.stack([outside[:, k].quantile(share) for k, share in enumerate(shares)])
    margins = needed.clamp(min=0).cummax(0).values
    return torch.cat([-margins.flip(0), margins.new_zeros(1), margins])


@torch.inference_mode()
def calibrate(network: ForecastNetwork, held_out: Iterable[Windows]) -> None:
    """Set a network's margins from windows that it was not trained on; it must be in evaluation mode."""
    network.margins.zero_()
    parts = [supervise(network, batch, origins=1) for batch in held_out]
    forecast = torch.cat([part.forecast[part.counted] for part in parts])
    actual = torch.cat([part.target[part.counted] for part in parts])
    if len(actual):
        network.margins.copy_(widening_margins(forecast, actual, network.config.quantiles))
