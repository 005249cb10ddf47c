"""Training begins with the mixture of past values that forecasts the series best."""

import numpy as np
import pytest
import torch

from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.preferences import Offers, fit_preferences, read_offers
from xlstm_ts.windows import SeriesPool, WindowDataset, training_origins

CONFIG = NetworkConfig(
    horizon=3, season_lengths=(5,), quantiles=(0.1, 0.5, 0.9), patch_length=5, embedding_dim=8, num_heads=2
)
LAST_VALUE, SEASON_AGO = 0, 1


def offers_of(values: np.ndarray) -> tuple[Offers, torch.Tensor]:
    """What the candidates of a network say of a series, and what the network prefers before it sees any."""
    torch.manual_seed(0)
    network = ForecastNetwork(CONFIG)
    pool = SeriesPool.from_lengths(values, np.array([len(values)]))
    origins = training_origins(pool, least_history=5, wished_history=5)
    windows = WindowDataset(pool, *origins, before=CONFIG.reach, after=CONFIG.horizon)
    return read_offers(network, windows), torch.tensor(network.candidates.preferences)


@pytest.mark.parametrize(("kind", "best"), [("walk", LAST_VALUE), ("season", SEASON_AGO)])
def test_the_candidate_that_a_series_continues_is_preferred(kind: str, best: int) -> None:
    noise = np.random.default_rng(0).normal(size=400)
    values = noise.cumsum() if kind == "walk" else 9 * np.sin(2 * np.pi * np.arange(400) / 5) + 0.1 * noise

    preferences = fit_preferences(*offers_of(values))

    plain = preferences[:5]  # without those that drift
    assert plain.argmax() == best
    assert preferences.isfinite().all()


def test_the_mixture_found_is_better_than_the_usual_one() -> None:
    offers, usual = offers_of(np.random.default_rng(1).normal(size=300).cumsum())

    def error(preferences: torch.Tensor) -> torch.Tensor:
        weights = preferences.masked_fill(~offers.available, -torch.inf).softmax(-1)
        return ((weights * offers.values).sum(-1) - offers.target).abs()[offers.came].mean()

    assert error(fit_preferences(offers, usual)) < 0.8 * error(usual)


def test_without_a_value_to_learn_from_the_usual_preferences_stay() -> None:
    offers, usual = offers_of(np.full(60, np.nan))

    assert not offers.came.any()
    torch.testing.assert_close(fit_preferences(offers, usual), usual)


def test_what_few_windows_ask_for_stays_close_to_the_usual() -> None:
    offers, usual = offers_of(np.random.default_rng(1).normal(size=300).cumsum())

    def distance(windows: float) -> float:
        return float((fit_preferences(offers._replace(independent=windows), usual) - usual).norm())

    assert distance(1) < 0.7 * distance(30)


def test_overlapping_windows_count_once() -> None:
    offers, _ = offers_of(np.arange(300.0))

    assert offers.independent == pytest.approx((300 - 5) / CONFIG.horizon)
