"""Levels become quantiles, and quantiles between the trained ones are interpolated."""

from statistics import NormalDist

import numpy as np
import pytest

from xlstm_ts.quantiles import TRAINED_QUANTILES, interpolate_quantiles, level_to_quantiles


@pytest.mark.parametrize(("level", "bounds"), [(80, (0.1, 0.9)), (95, (0.025, 0.975)), (98, (0.01, 0.99))])
def test_a_level_is_a_central_interval(level: float, bounds: tuple[float, float]) -> None:
    assert level_to_quantiles(level) == bounds


def test_trained_quantiles_are_returned_as_they_are() -> None:
    trained = np.arange(13.0)

    np.testing.assert_allclose(interpolate_quantiles(trained, [0.01, 0.1, 0.5, 0.99]), [0, 2, 6, 12])


def test_interpolation_is_exact_for_a_normal_distribution() -> None:
    distribution = NormalDist(3, 2)
    trained = np.array([distribution.inv_cdf(p) for p in TRAINED_QUANTILES])

    np.testing.assert_allclose(
        interpolate_quantiles(trained, [0.025, 0.37]), [distribution.inv_cdf(0.025), distribution.inv_cdf(0.37)]
    )


def test_trained_quantiles_are_symmetric_around_the_median() -> None:
    assert len(TRAINED_QUANTILES) % 2 == 1
    np.testing.assert_allclose(np.add(TRAINED_QUANTILES, TRAINED_QUANTILES[::-1]), 1)
