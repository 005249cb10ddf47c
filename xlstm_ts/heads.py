"""Heads: what the network's outputs mean, as a distribution of each value ahead.

Shapes: any leading ones, n parameters of a value, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_ts.scaling import Scale

if TYPE_CHECKING:
    from pytorch_forecasting.metrics import MultiHorizonMetric

# Quantile gaps start near softplus(-2) = .13 scales: wide enough to learn from, narrow enough to be close.
INITIAL_GAP = -2.0
# Deviations start near softplus(-1) = .31 scales.
INITIAL_DEVIATION = -1.0
LEAST_GAP, LEAST_DEVIATION, LEAST_RATE = 1e-3, 1e-4, 1e-6
LEAST_DEGREES = 2.1  # a variance exists


class Head(Protocol):
    """A family of distributions whose parameters are in units of a token's scale unless told otherwise."""

    num_outputs: int
    rescales: bool  # whether parameters times a factor are those of values times that factor

    def parameters(self, base: Tensor, raw: Tensor, scale: Scale) -> Tensor:
        """Parameters (B, S, H, n) from a base value (B, S, H, 1), the network's outputs (B, S, H, num_outputs)."""

    def loss(self, parameters: Tensor, target: Tensor, scale: Scale) -> Tensor:
        """Loss (B, S, H) of targets (B, S, H) in units of the scale."""

    def centre(self, parameters: Tensor, scale: Scale) -> Tensor:
        """The middle of each distribution (B, S, H) in units of the scale."""

    def quantiles(self, parameters: Tensor, probabilities: Sequence[float], scale: Scale) -> Tensor:
        """Quantiles (B, S, H, Q) in units of the scale."""

    def outputs_for(self, errors: Tensor) -> Tensor:
        """The network's outputs (num_outputs,) that expect such errors (M,) of the base, in units of the scale."""


class QuantileHead:
    """Quantiles of fixed probabilities, trained on the pinball loss, without a shape assumed."""

    rescales = True

    def __init__(self, probabilities: Sequence[float]) -> None:
        self.probabilities = tuple(probabilities)
        self.num_outputs = len(self.probabilities)

    @cached_property
    def metric(self) -> MultiHorizonMetric:
        from pytorch_forecasting.metrics import QuantileLoss  # takes seconds to import, forecasting does without

        return QuantileLoss(quantiles=list(self.probabilities))

    def parameters(self, base: Tensor, raw: Tensor, scale: Scale) -> Tensor:
        return base + ascending(raw)

    def loss(self, parameters: Tensor, target: Tensor, scale: Scale) -> Tensor:
        return stepwise(self.metric, parameters, target).mean(-1)

    def centre(self, parameters: Tensor, scale: Scale) -> Tensor:
        return parameters[..., self.num_outputs // 2]

    def quantiles(self, parameters: Tensor, probabilities: Sequence[float], scale: Scale) -> Tensor:
        assert tuple(probabilities) == self.probabilities, "quantiles between the trained ones are interpolated later"
        return parameters

    def outputs_for(self, errors: Tensor) -> Tensor:
        middle = self.num_outputs // 2
        gaps = errors.quantile(errors.new_tensor(self.probabilities)).diff()
        raw = unsoftened(gaps.clamp(min=LEAST_GAP)) - INITIAL_GAP
        return torch.cat([raw[:middle], raw.new_zeros(1), raw[middle:]])


class NormalHead:
    """A normal distribution: location and deviation."""

    num_outputs = 2
    rescales = False

    def parameters(self, base: Tensor, raw: Tensor, scale: Scale) -> Tensor:
        return torch.cat([base + raw[..., :1], positive(raw[..., 1:])], -1)

    def loss(self, parameters: Tensor, target: Tensor, scale: Scale) -> Tensor:
        location, deviation = parameters.unbind(-1)
        return -torch.distributions.Normal(location, deviation).log_prob(target)

    def centre(self, parameters: Tensor, scale: Scale) -> Tensor:
        return parameters[..., 0]

    def quantiles(self, parameters: Tensor, probabilities: Sequence[float], scale: Scale) -> Tensor:
        scores = parameters.new_tensor([NormalDist().inv_cdf(p) for p in probabilities])
        return parameters[..., :1] + parameters[..., 1:] * scores

    def outputs_for(self, errors: Tensor) -> Tensor:
        return torch.stack([errors.new_zeros(()), deviation_output(errors)])


class StudentTHead:
    """Student's t: location, deviation and degrees of freedom, for values with outliers."""

    num_outputs = 3
    rescales = False

    def parameters(self, base: Tensor, raw: Tensor, scale: Scale) -> Tensor:
        degrees = LEAST_DEGREES + F.softplus(raw[..., 2:] + 2.0)
        return torch.cat([base + raw[..., :1], positive(raw[..., 1:2]), degrees], -1)

    def loss(self, parameters: Tensor, target: Tensor, scale: Scale) -> Tensor:
        location, deviation, degrees = parameters.unbind(-1)
        return -torch.distributions.StudentT(degrees, location, deviation).log_prob(target)

    def centre(self, parameters: Tensor, scale: Scale) -> Tensor:
        return parameters[..., 0]

    def quantiles(self, parameters: Tensor, probabilities: Sequence[float], scale: Scale) -> Tensor:
        from scipy.stats import t

        degrees = parameters[..., 2:].double().numpy(force=True)
        scores = torch.as_tensor(t.ppf(np.asarray(probabilities), degrees)).to(parameters)
        return parameters[..., :1] + parameters[..., 1:2] * scores

    def outputs_for(self, errors: Tensor) -> Tensor:
        return torch.stack([errors.new_zeros(()), deviation_output(errors), errors.new_zeros(())])


class NegativeBinomialHead:
    """Counts: mean in units of the data, and overdispersion."""

    num_outputs = 2
    rescales = False

    @cached_property
    def metric(self) -> MultiHorizonMetric:
        from pytorch_forecasting.metrics import NegativeBinomialDistributionLoss

        return NegativeBinomialDistributionLoss()

    def parameters(self, base: Tensor, raw: Tensor, scale: Scale) -> Tensor:
        mean = scale.restore((base + raw[..., :1]).flatten(2)).float().reshape(base.shape)
        unit = scale.scale.float().unsqueeze(-1)
        # Softplus on the series' own scale: linear where counts are high, positive where they are low.
        return torch.cat([unit * F.softplus(mean / unit) + LEAST_RATE, positive(raw[..., 1:])], -1)

    def loss(self, parameters: Tensor, target: Tensor, scale: Scale) -> Tensor:
        # Rounded, as counts have come through units of the scale and back.
        counts = scale.restore(target.flatten(2)).round().clamp(min=0).float()
        return self.metric.loss(parameters, counts)

    def centre(self, parameters: Tensor, scale: Scale) -> Tensor:
        return scale.normalise(parameters[..., 0])

    def quantiles(self, parameters: Tensor, probabilities: Sequence[float], scale: Scale) -> Tensor:
        from scipy.stats import nbinom

        mean, dispersion = (part[..., None].double().numpy(force=True) for part in parameters.unbind(-1))
        size = 1 / dispersion
        counts = torch.as_tensor(nbinom.ppf(np.asarray(probabilities), size, size / (size + mean)))
        counts = counts.to(scale.scale)
        return scale.normalise(counts.flatten(2)).reshape(counts.shape)

    def outputs_for(self, errors: Tensor) -> Tensor:
        return errors.new_zeros(self.num_outputs)


class PointHead:
    """One value, trained on an error of its own; calibration alone gives it intervals.

    Args:
        error: one of torch's losses.
    """

    num_outputs = 1
    rescales = True

    def __init__(self, error: Callable[..., Tensor]) -> None:
        self.error = error

    def parameters(self, base: Tensor, raw: Tensor, scale: Scale) -> Tensor:
        return base + raw

    def loss(self, parameters: Tensor, target: Tensor, scale: Scale) -> Tensor:
        return self.error(parameters[..., 0], target, reduction="none")

    def centre(self, parameters: Tensor, scale: Scale) -> Tensor:
        return parameters[..., 0]

    def quantiles(self, parameters: Tensor, probabilities: Sequence[float], scale: Scale) -> Tensor:
        return parameters.expand(*parameters.shape[:-1], len(probabilities))

    def outputs_for(self, errors: Tensor) -> Tensor:
        return errors.new_zeros(self.num_outputs)


# By scikit-learn's names of the errors; that of Huber is squared below one unit of the loss.
PARAMETRIC: dict[str, Callable[[], Head]] = {
    "normal": NormalHead,
    "student_t": StudentTHead,
    "negative_binomial": NegativeBinomialHead,
    "point": partial(PointHead, F.mse_loss),
    "absolute_error": partial(PointHead, F.l1_loss),
    "huber": partial(PointHead, F.huber_loss),
}
HEADS = ("quantile", *PARAMETRIC)


def make_head(name: str, probabilities: Sequence[float]) -> Head:
    """The head of the given name; ``probabilities`` are those of the quantile head."""
    return QuantileHead(probabilities) if name == "quantile" else PARAMETRIC[name]()


def stepwise(metric: MultiHorizonMetric, parameters: Tensor, target: Tensor) -> Tensor:
    """A metric's loss at every step; it takes (batch, steps, n), so tokens are laid into the batch."""
    loss = metric.loss(parameters.flatten(0, 1), target.flatten(0, 1))
    return loss.reshape(*target.shape, *loss.shape[2:])


def positive(raw: Tensor) -> Tensor:
    """Unbounded numbers to deviations."""
    return F.softplus(raw + INITIAL_DEVIATION) + LEAST_DEVIATION


def unsoftened(positive: Tensor) -> Tensor:
    """What softplus makes of it.

    >>> F.softplus(unsoftened(torch.tensor([0.5, 9.0])))
    tensor([0.5000, 9.0000])
    """
    return positive + (-(-positive).expm1()).log()


def deviation_output(errors: Tensor) -> Tensor:
    """The raw output that ``positive`` makes the standard deviation of errors."""
    return unsoftened(errors.std().clamp(min=LEAST_GAP)) - INITIAL_DEVIATION


def ascending(raw: Tensor) -> Tensor:
    """Unbounded numbers (..., Q), Q odd, to quantiles that never cross: the middle one, positive gaps around it.

    >>> bool((ascending(torch.randn(3, 5)).diff() > 0).all())
    True
    """
    middle = raw.shape[-1] // 2
    median, gaps = raw[..., middle : middle + 1], F.softplus(raw + INITIAL_GAP)
    below = median - gaps[..., :middle].flip(-1).cumsum(-1).flip(-1)
    above = median + gaps[..., middle + 1 :].cumsum(-1)
    return torch.cat([below, median, above], -1)
