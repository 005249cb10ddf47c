"""The linear map is a ridge regression on what was seen, its strength chosen by held-out windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xlstm_ts.linear_map import Pairs, fit_linear_map, normal_equations, ridge_path, squared_error
from xlstm_ts.loaders import tail_loader, training_loader
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.windows import SeriesPool

from .conftest import TRAINING

SIZES = NetworkConfig(
    horizon=3, season_lengths=(4,), quantiles=(0.1, 0.5, 0.9), patch_length=4, season_repeats=2, linear_lookback=6
)
CONFIG = replace(TRAINING, context_tokens=2, val_size=None)


def random_pairs(count: int, weight: torch.Tensor, noise: float = 0.0) -> Pairs:
    generator = torch.Generator().manual_seed(count)
    behind = torch.randn(count, len(weight), generator=generator)
    ahead = behind @ weight
    ahead = ahead + noise * torch.randn(ahead.shape, generator=generator)
    return Pairs(behind, ahead, torch.ones_like(ahead, dtype=torch.bool))


def only_map(pairs: Pairs, strength: float, season: int = 1000) -> torch.Tensor:
    lookback, horizon = pairs.behind.shape[1], pairs.ahead.shape[1]
    return next(ridge_path(*normal_equations([pairs], lookback, horizon), season=season, strengths=[strength]))


def test_next_to_no_penalty_finds_the_map_that_made_the_data() -> None:
    weight = torch.randn(5, 2)

    torch.testing.assert_close(only_map(random_pairs(200, weight), 1e-9).float(), weight, rtol=1e-4, atol=1e-4)


def test_a_penalty_is_that_of_ridge_regression() -> None:
    pairs = random_pairs(50, torch.randn(5, 2), noise=1.0)
    x, y = pairs.behind.double(), pairs.ahead.double()
    age = torch.arange(4, -1, -1)
    penalty = torch.diag((1 + age / 4).square())  # grows with age in seasons of 4
    mean = ((x.square().mean(0)) / penalty.diagonal()).mean()
    expected = torch.linalg.solve(x.T @ x / 50 + 0.3 * mean * penalty, x.T @ y / 50)

    torch.testing.assert_close(only_map(pairs, 0.3, season=4), expected, rtol=1e-5, atol=1e-6)


def test_values_ahead_that_are_missing_do_not_pull_a_map_towards_zero() -> None:
    weight = torch.randn(5, 2)
    pairs = random_pairs(20_000, weight)
    came = pairs.came.clone()
    came[::2, 0] = False
    pairs = Pairs(pairs.behind, torch.where(came, pairs.ahead, 0.0), came)

    torch.testing.assert_close(only_map(pairs, 1e-9).float(), weight, rtol=0.05, atol=0.05)
    assert squared_error(weight, pairs) == pytest.approx(0, abs=1e-9)


def pool_of(values: np.ndarray) -> SeriesPool:
    return SeriesPool.from_lengths(values.ravel(), np.full(len(values), values.shape[1]))


def solve(pool: SeriesPool, tail: int, unit: str = "series") -> torch.Tensor:
    tails = torch.full((len(pool.starts),), tail)
    held_out = tail_loader(pool, tails, SIZES, CONFIG, step=1) if tail else None
    training = training_loader(pool.without_tails(tails), SIZES, CONFIG)
    return fit_linear_map(training, held_out, ForecastNetwork(SIZES), unit=unit)


@pytest.mark.parametrize("unit", ["origin", "series"])
def test_a_sum_of_two_oscillations_is_continued(unit: str) -> None:
    steps = np.arange(200.0)
    values = np.sin(steps) + np.sin(steps * 2.3)

    linear_map = solve(pool_of(values[None]), 30, unit)

    history = torch.from_numpy(values[100:106] - values[98:106].mean())  # relative to the mean of two seasons
    ahead = values[106:109] - values[98:106].mean()
    np.testing.assert_allclose(history @ linear_map, ahead, atol=0.3)


def test_noise_is_held_out_to_choose_a_stronger_penalty_than_a_clear_signal() -> None:
    rng = np.random.default_rng(0)
    noise, signal = rng.normal(size=(2, 150)), np.sin(np.arange(300.0)).reshape(2, 150)

    assert solve(pool_of(noise), 40).square().sum() < 0.2 * solve(pool_of(signal), 40).square().sum()


def test_held_out_values_do_not_enter_the_map_beyond_its_strength() -> None:
    values = np.random.default_rng(1).normal(size=(2, 120)).cumsum(1)
    other = values.copy()
    other[:, -20:] *= 1.001

    without = solve(pool_of(values[:, :-20]), 0)

    assert without.shape == (6, 3)
    torch.testing.assert_close(solve(pool_of(values), 20), solve(pool_of(other), 20), rtol=0.05, atol=0.02)


def test_a_series_without_a_whole_horizon_leaves_the_map_at_zero() -> None:
    assert not solve(pool_of(np.arange(6.0)[None]), 0).any()


def test_sizes_without_a_season_in_the_look_back_are_solved_too() -> None:
    sizes = replace(SIZES, linear_lookback=2)
    pool = pool_of(np.sin(np.arange(60.0))[None])

    linear_map = fit_linear_map(training_loader(pool, sizes, CONFIG), None, ForecastNetwork(sizes), unit="origin")

    assert linear_map.shape == (2, 3)
    assert linear_map.isfinite().all()
