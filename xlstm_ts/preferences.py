"""Which candidates a decoder prefers before training: the fixed mixture of them that forecasts training windows best.

Gradient descent on few windows finds too late that prices continue their last value, and loads their last week.

Shapes: M windows, h of the H steps ahead, K candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xlstm_ts.network import ForecastNetwork
from xlstm_ts.windows import WindowDataset, Windows

# Of M * h forecasts: a mixture of some ten candidates has little to learn from more.
MOST_WINDOWS, MOST_STEPS = 1024, 16
UPDATES, RATE = 150, 0.1
# What the squared distance from the usual preferences costs, shared by the independent windows, and at least: ten
# candidates fit a week of a single series by chance.
LOYALTY, LEAST_LOYALTY = 0.3, 0.01


class Offers(NamedTuple):
    """What candidates forecast at the ends of windows, and what came true, in units of each origin's scale.

    Attributes:
        values: (M, h, K).
        available: (M, h, K) bool.
        target: (M, h), arbitrary where it did not come.
        came: (M, h) bool.
        independent: how many windows there are that do not overlap.
    """

    values: Tensor
    available: Tensor
    target: Tensor
    came: Tensor
    independent: float


@torch.no_grad()
def read_offers(network: ForecastNetwork, data: Dataset[Windows]) -> Offers:
    """The candidates of windows and of steps ahead, both evenly spread."""
    assert isinstance(data, WindowDataset)
    reach, horizon = network.config.reach, network.config.horizon
    index = torch.arange(0, len(data), -(-len(data) // MOST_WINDOWS))
    steps = torch.arange(0, horizon, -(-horizon // MOST_STEPS))
    rows, _ = data.__getitems__(index.tolist())
    past, future = rows.steps(slice(-reach - horizon, -horizon)), rows.steps(slice(-horizon, None))
    tokens = network.tokenise(past, stride=1)
    target = tokens.scale.normalise(future.values[:, None])
    values, available = network.candidates(tokens)
    independent = len(data) * min(1.0, data.step / horizon)
    return Offers(values[:, 0, steps], available[:, 0, steps], target[:, 0, steps], future.seen[:, steps], independent)


def mix(preferences: Tensor, values: Tensor, available: Tensor) -> Tensor:
    """The mixture of candidates (..., K) with weights of these logarithms (K,)."""
    weights = preferences.masked_fill(~available, -torch.inf).softmax(-1)
    return (weights * values).sum(-1)


def best_preferences(network: ForecastNetwork, offers: Offers) -> Tensor:
    """The preferences (K,) that forecast windows best: the linear map's, where there is one."""
    usual = torch.tensor(network.candidates.preferences)
    return usual if network.config.linear_lookback else fit_preferences(offers, usual)


def fit_preferences(offers: Offers, usual: Tensor) -> Tensor:
    """The logarithms of the weights (K,) of the mixture with the least absolute error.

    Args:
        offers: of training windows.
        usual: the preferences to begin with, and to stay close to.
    """
    loyalty = max(LEAST_LOYALTY, LOYALTY / max(1.0, offers.independent))
    preferences = usual.clone().requires_grad_()
    optimizer = torch.optim.Adam([preferences], lr=RATE)
    with torch.enable_grad():
        for _ in range(UPDATES):
            miss = mix(preferences, offers.values, offers.available) - offers.target
            error = torch.where(offers.came, miss.abs(), 0.0).sum() / offers.came.sum().clamp(min=1)
            optimizer.zero_grad()
            (error + loyalty * (preferences - usual).square().mean()).backward()
            optimizer.step()
    return preferences.detach()
