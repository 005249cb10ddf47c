"""Seasons found in values: real ones, noisy ones, none where there are none."""

import numpy as np
import pytest

from xlstm_ts.datasets import load_air_passengers
from xlstm_ts.seasons import detect_season_lengths


def detect(*series: np.ndarray) -> tuple[int, ...]:
    return detect_season_lengths(np.concatenate(series), np.array([len(values) for values in series]))


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


def test_airline_passengers_repeat_after_twelve_months() -> None:
    assert detect(load_air_passengers()["y"].to_numpy(float)) == (12,)


def test_a_week_is_found_beside_a_day() -> None:
    hours = np.arange(24 * 7 * 8)
    weekend = 0.7 * (hours // 24 % 7 >= 5)

    assert detect(np.sin(2 * np.pi * hours / 24) + weekend + 0.2 * noise(len(hours))) == (24, 168)


def test_a_smooth_season_is_found_in_noise_and_in_many_ragged_series() -> None:
    rows = [2 * np.sin(2 * np.pi * np.arange(n) / 12) + noise(n, seed=n) for n in (300, 210, 60, 5)]

    assert detect(rows[0]) == (12,)
    assert detect(*rows) == (12,)


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_random_walks_have_no_season(seed: int) -> None:
    for size in (30, 300, 1000):
        assert detect(noise(size, seed)) == (1,)
        assert detect(noise(size, seed).cumsum()) == (1,)


@pytest.mark.parametrize("values", [np.ones(50), np.arange(50.0), np.zeros(1), np.arange(3.0)])
def test_series_that_show_nothing_have_no_season(values: np.ndarray) -> None:
    assert detect(values) == (1,)


def test_a_season_is_found_among_missing_values() -> None:
    rng = np.random.default_rng(0)
    values = np.sin(2 * np.pi * np.arange(600) / 24) + 0.1 * rng.normal(size=600)
    values[rng.integers(0, 600, 60)] = np.nan

    assert detect_season_lengths(values, np.array([600])) == (24,)


def test_series_without_any_value_have_no_season() -> None:
    assert detect_season_lengths(np.full(50, np.nan), np.array([50])) == (1,)
