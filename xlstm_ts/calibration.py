"""What forecasts of known rows teach about intervals and paths: how far too narrow, how errors hang together.

Few series hold out few independent errors: the last two days of one say little about the next month. All training rows
say more, but the network knows them. So the fixed mixture of past values, which learns next to nothing, stands in: what
it missed there, times the share of its errors that the network makes where neither was trained.

Shapes: M windows, H horizon, Q quantiles.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from xlstm_ts.forecasting import normal_scores
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.preferences import best_preferences, mix, read_offers
from xlstm_ts.supervision import supervise
from xlstm_ts.windows import WindowDataset, Windows

MOST_CORRELATED = 0.99
# What training rows weigh at most, in independent windows: where hundreds are held out, these decide.
TRUST = 20.0
# The share of the fixed mixture's errors that the network makes begins at one, as if so many windows had shown it.
DOUBT = 5.0


class Trial(NamedTuple):
    """Forecasts of windows, and what came true, in units of each origin's scale.

    Attributes:
        forecast: quantiles (M, H, Q).
        fixed: what the fixed mixture forecasts (M, H).
        actual: (M, H), arbitrary where not counted.
        counted: (M, H) bool.
        step: rows between the origins of a series.
    """

    forecast: Tensor
    fixed: Tensor
    actual: Tensor
    counted: Tensor
    step: int

    @property
    def median(self) -> Tensor:
        """(M, H)."""
        return self.forecast[..., self.forecast.shape[-1] // 2]


@torch.inference_mode()
def run_trial(network: ForecastNetwork, data: DataLoader[Windows], preferences: Tensor, *, least_history: int) -> Trial:
    """Forecast at the end of each window, with the network and with the mixture of the given preferences."""
    assert isinstance(data.dataset, WindowDataset)
    parts = []
    for batch in data:
        part = supervise(network, batch, origins=1, least_history=least_history)
        fixed = mix(preferences, *network.candidates(part.tokens))
        fields = network.quantiles(part.parameters, part.scale), fixed, part.target, part.counted
        parts.append([field[:, 0] for field in fields])
    forecast, mixed, actual, counted = (torch.cat(fields) for fields in zip(*parts, strict=True))
    return Trial(forecast, mixed, actual, counted, data.dataset.step)


def independent_windows(trial: Trial, steps: Tensor, ahead: float) -> Tensor:
    """How many windows with a value at some of the steps, bool (H,), count: as errors of neighbours are alike."""
    # Errors so many steps ahead are alike until so many rows later.
    return (trial.counted & steps).any(1).sum() * min(1.0, trial.step / ahead)


def error_share(trial: Trial) -> float:
    """The network's absolute error as a share of the fixed mixture's; close to one where few windows tell."""
    ours, fixed = ((guess - trial.actual).abs()[trial.counted].sum() for guess in (trial.median, trial.fixed))
    every = torch.ones_like(trial.counted[0])
    count = float(independent_windows(trial, every, len(every)))
    return (count * float(ours / fixed) + DOUBT) / (count + DOUBT) if fixed > 0 else 1.0


def stand_in(known: Trial, share: float) -> Trial:
    """A trial on rows that trained the network, in which it misses by a share of what the fixed mixture misses."""
    return known._replace(actual=known.median + share * (known.actual - known.fixed))


def widening_margins(
    forecast: Tensor, actual: Tensor, quantiles: Sequence[float], weight: Tensor | None = None
) -> Tensor:
    """What to add to every quantile so that each central interval covers its share of ``actual``.

    Conformalised quantile regression (Romano et al., 2019), except that intervals never shrink and wider ones get no
    smaller margin, so that quantiles still cannot cross. The median stays.

    Args:
        forecast: quantiles (M, Q) of values that training did not see.
        actual: those values (M,).
        quantiles: the Q probabilities, symmetric around 0.5.
        weight: for how many independent values each one counts (M,); None is one.

    Returns:
        Margins (Q,), negative below the median, in the units of ``forecast``.

    >>> widening_margins(torch.tensor([[4.0, 5.0, 6.0]]), torch.tensor([8.0]), (0.1, 0.5, 0.9))
    tensor([-2.,  0.,  2.])
    """
    middle = len(quantiles) // 2
    below, above = forecast[:, :middle].flip(1), forecast[:, middle + 1 :]  # both from the median outwards
    outside = torch.maximum(below - actual[:, None], actual[:, None] - above)  # (M, middle)
    ordered, order = outside.sort(0)
    reached = (torch.ones_like(actual) if weight is None else weight).double()[order].cumsum(0)  # (M, middle)
    # One more, the value to come, may lie beyond all: it corrects for the few that calibrate.
    shares = reached.new_tensor([2 * p - 1 for p in quantiles[middle + 1 :]])
    wanted = shares * (reached[-1] + 1)
    rank = (reached < wanted - 1e-9).sum(0).clamp(max=len(actual) - 1)
    margins = ordered.gather(0, rank[None])[0].clamp(min=0).cummax(0).values
    return torch.cat([-margins.flip(0), margins.new_zeros(1), margins])


def margins_by_step(trials: Sequence[tuple[Trial, float]], quantiles: Sequence[float]) -> Tensor:
    """Margins (H, Q) of each step ahead, from steps about as far ahead: half as far to twice.

    Args:
        trials: with the independent windows that each counts for at most.
        quantiles: the Q probabilities.
    """
    horizon = trials[0][0].actual.shape[1]
    distance = np.log2(np.arange(1, horizon + 1))
    anchors = np.union1d(np.arange(math.ceil(distance[-1])), distance[-1:])
    found = [torch.zeros(len(quantiles))]
    for anchor in anchors:
        near = torch.tensor(1 - np.abs(distance - anchor)).clamp(min=0)
        parts = list(_neighbours(trials, near, float(2**anchor)))
        if parts:
            forecast, actual, weight = (torch.cat(fields) for fields in zip(*parts, strict=True))
            found.append(widening_margins(forecast, actual, quantiles, weight))
        else:  # no value came so far ahead: as much as less far
            found.append(found[-1])
    columns = torch.stack(found[1:], 1).numpy(force=True)
    return torch.tensor(np.array([np.interp(distance, anchors, column) for column in columns]).T, dtype=torch.float32)


def _neighbours(
    trials: Sequence[tuple[Trial, float]], near: Tensor, ahead: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The quantiles, values and weights of steps whose weights ``near`` (H,) are not zero."""
    for trial, most in trials:
        weight = torch.where(trial.counted, near.to(trial.counted.device), 0.0)
        if weight.any():
            windows = independent_windows(trial, near > 0, ahead)
            used = weight > 0
            yield trial.forecast[used], trial.actual[used], weight[used] * (windows.clamp(max=most) / weight.sum())


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


def calibrate(
    network: ForecastNetwork,
    held_out: DataLoader[Windows] | None,
    trained: DataLoader[Windows],
    *,
    least_history: int,
) -> None:
    """Set a network's margins and path correlation, in evaluation mode.

    Args:
        network: what forecasts.
        held_out: windows that it was not trained on; with None it is taken to miss as much as the fixed mixture.
        trained: windows that it was trained on.
        least_history: as in ``supervise``.
    """
    quantiles = network.config.quantiles
    network.margins.zero_()
    preferences = best_preferences(network, read_offers(network, trained.dataset))
    known = run_trial(network, trained, preferences, least_history=least_history)
    trials, share = [], 1.0
    if held_out is not None:
        tested = run_trial(network, held_out, preferences, least_history=least_history)
        share = error_share(tested)
        trials.append((tested, math.inf))
    trials.append((stand_in(known, share), TRUST))
    if any(trial.counted.any() for trial, _ in trials):
        network.margins.copy_(margins_by_step(trials, quantiles))
        first = trials[0][0]
        network.path_correlation.copy_(
            step_correlation(first.forecast + network.margins, first.actual, first.counted, quantiles)
        )
