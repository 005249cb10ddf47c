"""Moments are all that least squares asks of windows, and joining them forgets nothing."""

import pytest
import torch

from xlstm_ts.least_squares import Moments, Pairs, join, squared_error

WEIGHT = torch.tensor([[1.0, 0.0], [-2.0, 0.5], [0.0, 3.0]])


@pytest.fixture
def pairs() -> Pairs:
    generator = torch.Generator().manual_seed(0)
    behind = torch.randn(60, 3, generator=generator)
    ahead = behind @ WEIGHT + 0.1 * torch.randn(60, 2, generator=generator)
    came = torch.rand(60, 2, generator=generator) < 0.8
    return Pairs(behind, torch.where(came, ahead, 0.0), came)


def whole(pairs: Pairs) -> Pairs:
    return pairs.select(pairs.came.all(1))


def test_parts_joined_have_the_moments_of_all_their_windows(pairs: Pairs) -> None:
    first = torch.arange(60) < 25

    joined = join([Moments.of(pairs.select(first)), Moments.none(3, 2), Moments.of(pairs.select(~first))])

    for found, expected in zip(joined, Moments.of(pairs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_means_are_over_the_windows_in_which_a_step_was_seen(pairs: Pairs) -> None:
    inputs, outputs, squares = Moments.of(pairs).means()

    torch.testing.assert_close(inputs.float(), pairs.behind.T @ pairs.behind / 60)
    for step in range(2):
        seen = pairs.select(pairs.came[:, step])
        torch.testing.assert_close(outputs[:, step].float(), (seen.behind * seen.ahead[:, [step]]).mean(0))
        torch.testing.assert_close(squares[step].float(), seen.ahead[:, step].square().mean())


def test_the_error_by_moments_is_that_of_every_forecast(pairs: Pairs) -> None:
    behind, ahead, _ = complete = whole(pairs)

    error = squared_error(0.9 * WEIGHT.double(), Moments.of(complete))

    assert float(error) == pytest.approx(float((behind @ (0.9 * WEIGHT) - ahead).square().mean()), rel=1e-4)


def test_a_perfect_map_errs_by_no_more_than_rounding_and_more_than_nothing() -> None:
    behind = torch.eye(3)
    moments = Moments.of(Pairs(behind, behind @ WEIGHT, torch.ones(3, 2, dtype=torch.bool)))

    assert 0 < float(squared_error(WEIGHT.double(), moments)) < 1e-14
