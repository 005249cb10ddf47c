"""The seasonal map is the least-squares map among those whose weights are alike at all phases."""

import numpy as np
import pytest
import torch

from xlstm_ts.least_squares import Moments, Pairs
from xlstm_ts.seasonal_map import seasonal_map

SEASON = 4


def pairs_of(values: np.ndarray, lookback: int, horizon: int) -> Pairs:
    windows = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(values, lookback + horizon).copy())
    behind, ahead = windows.split([lookback, horizon], 1)
    return Pairs(behind, ahead, torch.ones_like(ahead, dtype=torch.bool))


def fit(pairs: Pairs, strength: float = 1e-9) -> torch.Tensor:
    return seasonal_map(Moments.of(pairs), season=SEASON, strength=strength)


def noise(count: int = 400) -> np.ndarray:
    return np.random.default_rng(0).normal(size=count).cumsum()


@pytest.mark.parametrize("horizon", [3, 4, 10])
def test_its_weights_are_those_of_a_regression_over_all_phases(horizon: int) -> None:
    pairs = pairs_of(noise(), 12, horizon)
    mean = pairs.behind.mean(1, keepdim=True)
    seasons = (pairs.behind - mean).unflatten(1, (3, SEASON))
    features = torch.cat([seasons, seasons.mean(2, keepdim=True).expand_as(seasons)], 1)  # (M, 6, P)

    forecast = pairs.behind @ fit(pairs)

    every = features.movedim(1, 2).flatten(0, 1)  # of a last season that is not whole, the products stand in
    products = every.T @ every / len(every)
    for ahead in range(0, horizon, SEASON):  # steps of one season ahead share their weights
        step = slice(ahead, min(ahead + SEASON, horizon))
        x = features[..., : step.stop - ahead].movedim(1, 2)  # (M, P, 6)
        y = pairs.ahead[:, step] - mean
        weights = torch.linalg.solve(products, (x * y[..., None]).mean((0, 1)))
        torch.testing.assert_close(forecast[:, step], x @ weights + mean, rtol=1e-6, atol=1e-6)


def test_a_season_that_repeats_is_continued_whatever_its_level() -> None:
    values = np.tile([3.0, -1.0, 2.0, 0.0], 40)
    weight = fit(pairs_of(values + np.repeat(noise(10), 16), 8, 6), 1e-4)

    forecast = torch.from_numpy(values[:8] + 100) @ weight

    np.testing.assert_allclose(forecast, values[8:14] + 100, atol=0.1)


def test_the_penalty_is_in_units_of_the_values() -> None:
    torch.testing.assert_close(fit(pairs_of(noise(), 12, 6), 0.5), fit(pairs_of(1000 * noise(), 12, 6), 0.5))


def test_under_a_strong_penalty_every_step_is_the_mean_of_the_look_back() -> None:
    torch.testing.assert_close(fit(pairs_of(noise(), 8, 3), 1e12), torch.full((8, 3), 1 / 8, dtype=torch.float64))


def test_values_before_the_first_whole_season_have_no_weight() -> None:
    weight = fit(pairs_of(noise(), 11, 3), 0.1)

    assert not weight[:3].any()
    assert weight[3:].all()


def test_less_than_a_season_has_no_seasonal_map() -> None:
    assert not fit(pairs_of(noise(), 3, 2)).any()


def test_flat_series_stay_where_they_are() -> None:
    weight = fit(pairs_of(np.zeros(50), 8, 3), 0.1)

    torch.testing.assert_close(weight.sum(0), torch.ones(3, dtype=torch.float64))
