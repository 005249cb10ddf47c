"""The linear map is a ridge regression on what was seen, its strength chosen by held-out windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xlstm_ts.least_squares import Moments, Pairs, join, squared_error
from xlstm_ts.linear_map import BLOCKS, blocks_of, fit_linear_map, linear_maps, read_pairs
from xlstm_ts.loaders import tail_loader, training_loader
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.seasonal_map import seasonal_map
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


def only_map(pairs: Pairs, strength: float, *, season: int = 1000, seasonal_strength: float = 1.0) -> torch.Tensor:
    """With a season longer than its look-back, a map has no seasonal part."""
    (found,) = linear_maps(
        Moments.of(pairs), season=season, seasonal_strengths=[seasonal_strength], strengths=[strength]
    )
    return found


def test_next_to_no_penalty_finds_the_map_that_made_the_data() -> None:
    weight = torch.randn(5, 2)

    torch.testing.assert_close(only_map(random_pairs(200, weight), 1e-9).float(), weight, rtol=1e-4, atol=1e-4)


def test_a_penalty_is_that_of_ridge_regression_towards_the_seasonal_map() -> None:
    pairs = random_pairs(50, torch.randn(5, 2), noise=1.0)
    x, y = pairs.behind.double(), pairs.ahead.double()
    shared = seasonal_map(Moments.of(pairs), season=2, strength=0.7)
    age = torch.arange(4, -1, -1)
    penalty = torch.diag((1 + age / 2).square())  # grows with age in seasons of 2
    mean = ((x.square().mean(0)) / penalty.diagonal()).mean()
    beyond = torch.linalg.solve(x.T @ x / 50 + 0.3 * mean * penalty, x.T @ (y - x @ shared) / 50)

    found = only_map(pairs, 0.3, season=2, seasonal_strength=0.7)

    assert shared.any()
    torch.testing.assert_close(found, shared + beyond, rtol=1e-5, atol=1e-6)


def test_values_ahead_that_are_missing_do_not_pull_a_map_towards_zero() -> None:
    weight = torch.randn(5, 2)
    pairs = random_pairs(20_000, weight)
    came = pairs.came.clone()
    came[::2, 0] = False
    pairs = Pairs(pairs.behind, torch.where(came, pairs.ahead, 0.0), came)

    torch.testing.assert_close(only_map(pairs, 1e-9).float(), weight, rtol=0.05, atol=0.05)


def pool_of(values: np.ndarray) -> SeriesPool:
    return SeriesPool.from_lengths(values.ravel(), np.full(len(values), values.shape[1]))


def solve(pool: SeriesPool, tail: int, unit: str = "series", sizes: NetworkConfig = SIZES) -> torch.Tensor:
    tails = torch.full((len(pool.starts),), tail)
    held_out = tail_loader(pool, tails, sizes, CONFIG, step=1) if tail else None
    training = training_loader(pool.without_tails(tails), sizes, CONFIG)
    return fit_linear_map(training, held_out, ForecastNetwork(sizes), unit=unit)


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


def moments_of(values: np.ndarray, sizes: NetworkConfig = SIZES) -> Moments:
    data = training_loader(pool_of(values[None]), sizes, CONFIG).dataset
    return join(Moments.of(pairs) for _, pairs in read_pairs(data, ForecastNetwork(sizes), unit="series", most=9999))


def test_training_time_alone_chooses_penalties_that_serve_later_values() -> None:
    sizes = replace(SIZES, linear_lookback=24)
    earlier, later = np.random.default_rng(0).normal(size=(2, 120))
    least = next(linear_maps(moments_of(earlier, sizes), season=4, seasonal_strengths=[0.1], strengths=[0.03]))

    chosen = solve(pool_of(earlier[None]), 0, sizes=sizes)

    assert squared_error(chosen, moments_of(later, sizes)) < 0.9 * squared_error(least, moments_of(later, sizes))


def test_held_out_values_count_no_more_than_a_block_of_the_training_time() -> None:
    signal = np.sin(np.arange(200.0)) + 0.3 * np.random.default_rng(0).normal(size=200)
    odd = signal.copy()
    odd[-20:] = np.random.default_rng(1).normal(size=20)

    for tail in (signal, odd):  # a map of next to no penalty forecasts the signal, and 20 odd rows do not outvote it
        error = squared_error(solve(pool_of(tail[None]), 20), moments_of(signal))
        assert error < 0.25


def test_what_lies_ahead_of_a_window_is_in_one_block_of_its_series_or_in_two() -> None:
    pool = SeriesPool.from_lengths(np.arange(64.0), np.array([24, 40]))
    data = training_loader(pool, SIZES, CONFIG).dataset

    blocks = blocks_of(data, horizon=3)

    first = blocks[data.series == 0].tolist()  # 20 origins, five in a block; the horizon of three passes its end
    assert first == [0, 0, 0, 4, 4, 1, 1, 1, 4, 4, 2, 2, 2, 4, 4, 3, 3, 3, 4, 4]
    assert sorted(set(blocks[data.series == 1].tolist())) == list(range(BLOCKS + 1))


def test_look_backs_that_begin_before_their_series_are_left_out_where_half_of_it_can_spare_them() -> None:
    pool = SeriesPool.from_lengths(np.arange(40.0), np.array([30, 10]))
    network = ForecastNetwork(SIZES)
    data = training_loader(pool, SIZES, CONFIG).dataset

    ((indices, _),) = read_pairs(data, network, unit="origin", most=999)

    origins = [data.origins[indices[data.series[indices] == number]].tolist() for number in (0, 1)]
    assert origins == [list(range(6, 28)), list(range(35, 38))]


def test_held_out_values_do_not_enter_the_map_beyond_its_strength() -> None:
    values = np.random.default_rng(1).normal(size=(2, 120)).cumsum(1)
    other = values.copy()
    other[:, -20:] *= 1.001

    without = solve(pool_of(values[:, :-20]), 0)

    assert without.shape == (6, 3)
    torch.testing.assert_close(solve(pool_of(values), 20), solve(pool_of(other), 20), rtol=0.05, atol=0.02)


def test_a_series_without_a_whole_horizon_leaves_the_map_at_zero() -> None:
    assert not solve(pool_of(np.arange(6.0)[None]), 0).any()


@pytest.mark.parametrize("tail", [0, 4])
def test_a_series_too_short_for_blocks_is_solved_by_what_is_held_out_or_as_usual(tail: int) -> None:
    assert solve(pool_of(np.sin(np.arange(12.0 + tail))[None]), tail).any()


def test_sizes_without_a_season_in_the_look_back_are_solved_too() -> None:
    sizes = replace(SIZES, linear_lookback=2)
    pool = pool_of(np.sin(np.arange(60.0))[None])

    linear_map = fit_linear_map(training_loader(pool, sizes, CONFIG), None, ForecastNetwork(sizes), unit="origin")

    assert linear_map.shape == (2, 3)
    assert linear_map.isfinite().all()
