"""A linear map that seasons share: each step ahead is a mixture of the values at its phase, and of the means, of the
seasons before, with weights alike for all phases.

So a map from three weeks of hours to the next week has 21 · 2 · 7 weights, a free one 504 · 168. That phases share
their weights is the idea of SparseTSF (Lin et al., 2024), which descends a gradient to it.

Shapes: L values of a look-back, newest last, H horizon, P phases of a season, n seasons behind, k seasons ahead.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_ts.least_squares import Moments


def seasonal_map(moments: Moments, *, season: int, strength: float) -> Tensor:
    """The map (L, H) of least squares under a penalty on its weights.

    Without a penalty it mixes freely; the stronger it is, the closer every step comes to the mean of the look-back.

    Args:
        moments: of the windows to learn from.
        season: length P; all zero is the map from less than one.
        strength: of the penalty, in units of what inputs weigh in squares.
    """
    inputs, outputs, _ = moments.means()
    (lookback, horizon), seasons = outputs.shape, len(inputs) // season
    if not seasons:
        return torch.zeros_like(outputs)
    newest = torch.eye(lookback, dtype=inputs.dtype)[:, lookback - seasons * season :]
    mean = newest.mean(1, keepdim=True)  # (L, 1)
    values = (newest - mean).unflatten(1, (seasons, season))  # (L, n, P)
    means = values.mean(2, keepdim=True).expand_as(values)
    features = torch.cat([values, means], 1).movedim(2, 0)  # (P, L, 2n)
    ahead = -(-horizon // season)
    gap = F.pad(outputs - inputs @ mean, (0, ahead * season - horizon))  # (L, kP)
    gap = gap.unflatten(1, (ahead, season)).movedim(2, 0)  # (P, L, k)
    phases = F.pad(torch.ones(horizon), (0, ahead * season - horizon)).unflatten(0, (ahead, season)).sum(1)
    products = (features.mT @ (inputs @ features)).mean(0)  # (2n, 2n)
    crossed = (features.mT @ gap).sum(0) / phases
    unit = products.diagonal().mean().clamp(min=torch.finfo(products.dtype).eps)  # of flat series: zero
    weights = torch.linalg.solve(products + strength * unit * torch.eye(2 * seasons), crossed)  # (2n, k)
    return (mean + (features @ weights).movedim(0, 2).flatten(1))[:, :horizon]
