"""Heads: quantiles never cross, losses fall towards the truth, densities and quantiles agree."""

import pytest
import torch

from xlstm_ts.heads import HEADS, ascending, make_head
from xlstm_ts.scaling import Scale

PROBABILITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
SCALE = Scale(torch.full((1, 1, 1), 20.0, dtype=torch.float64), torch.full((1, 1, 1), 5.0, dtype=torch.float64))


def parameters_of(name: str, seed: int = 0) -> torch.Tensor:
    head = make_head(name, PROBABILITIES)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 1, 50, 1, generator=generator)
    return head.parameters(base, torch.randn(1, 1, 50, head.num_outputs, generator=generator), SCALE)


def test_ascending_never_crosses_even_for_extreme_outputs() -> None:
    raw = 1000 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))

    assert (ascending(raw).diff() >= 0).all()


def test_ascending_keeps_the_middle_output_as_the_median() -> None:
    raw = torch.tensor([3.0, -7.0, 5.0])

    assert ascending(raw)[1] == -7.0


@pytest.mark.parametrize("name", HEADS)
def test_quantiles_of_every_head_are_monotone(name: str) -> None:
    quantiles = make_head(name, PROBABILITIES).quantiles(parameters_of(name), PROBABILITIES, SCALE)

    assert quantiles.shape == (1, 1, 50, 5)
    assert (quantiles.diff() >= 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_every_loss_is_least_near_the_median(name: str) -> None:
    head = make_head(name, PROBABILITIES)
    parameters = parameters_of(name)
    median = head.quantiles(parameters, PROBABILITIES, SCALE)[..., 2]

    near, far = (head.loss(parameters, median + off, SCALE) for off in (0.0, 3.0))

    assert near.shape == (1, 1, 50)
    assert (near < far).all()


@pytest.mark.parametrize("name", ["normal", "student_t", "negative_binomial"])
def test_a_distribution_has_its_share_below_each_quantile(name: str) -> None:
    head = make_head(name, PROBABILITIES)
    parameters = parameters_of(name)[:, :, :1]
    if name == "negative_binomial":
        mean, dispersion = parameters[..., 0], parameters[..., 1]
        distribution = torch.distributions.NegativeBinomial(1 / dispersion, probs=mean / (mean + 1 / dispersion))
    elif name == "normal":
        distribution = torch.distributions.Normal(*parameters.unbind(-1))
    else:
        location, deviation, degrees = parameters.unbind(-1)
        distribution = torch.distributions.StudentT(degrees, location, deviation)
    torch.manual_seed(0)
    drawn = distribution.sample((20_000,)).flatten()
    if name == "negative_binomial":
        drawn = (drawn - 20) / 5

    quantiles = head.quantiles(parameters, PROBABILITIES, SCALE).flatten()

    shares = torch.stack([(drawn < value + 1e-6).float().mean() for value in quantiles])
    atol = 0.06 if name == "negative_binomial" else 0.015  # counts step
    torch.testing.assert_close(shares, torch.tensor(PROBABILITIES), atol=atol, rtol=0)


@pytest.mark.parametrize(("name", "error"), [("point", 9.0), ("absolute_error", 3.0), ("huber", 2.5)])
def test_a_point_is_trained_on_the_error_of_its_name(name: str, error: float) -> None:
    loss = make_head(name, PROBABILITIES).loss(torch.full((1, 1, 1, 1), 4.0), torch.ones(1, 1, 1), SCALE)

    assert loss.item() == error


@pytest.mark.parametrize("name", ["quantile", "normal", "student_t"])
def test_a_head_begins_with_the_errors_of_its_base(name: str) -> None:
    head = make_head(name, PROBABILITIES)
    errors = 2 * torch.randn(5000, generator=torch.Generator().manual_seed(0))

    raw = head.outputs_for(errors).expand(1, 1, 1, -1)

    quantiles = head.quantiles(head.parameters(torch.zeros(1, 1, 1, 1), raw, SCALE), PROBABILITIES, SCALE)
    assert quantiles[0, 0, 0, 2] == 0
    torch.testing.assert_close(quantiles[0, 0, 0, -1].item(), 2 * 1.2816, rtol=0.2, atol=0)


@pytest.mark.parametrize("name", HEADS)
def test_errors_of_zero_leave_every_head_a_distribution(name: str) -> None:
    head = make_head(name, PROBABILITIES)

    raw = head.outputs_for(torch.zeros(10))

    assert raw.shape == (head.num_outputs,)
    assert raw.isfinite().all()
