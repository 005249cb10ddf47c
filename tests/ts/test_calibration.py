"""Margins widen intervals just enough, and never make quantiles cross."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from xlstm_ts.calibration import Trial, calibrate, error_share, margins_by_step, stand_in, widening_margins
from xlstm_ts.loaders import as_fetched
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.windows import SeriesPool, WindowDataset, Windows

PROBABILITIES = (0.05, 0.2, 0.5, 0.8, 0.95)


def test_intervals_cover_their_share_after_widening() -> None:
    actual = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    forecast = 0.1 * torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(2000, -1)

    wide = forecast + widening_margins(forecast, actual, PROBABILITIES)

    for low, high, share in ((0, 4, 0.9), (1, 3, 0.6)):
        covered = ((wide[:, low] <= actual) & (actual <= wide[:, high])).float().mean()
        torch.testing.assert_close(covered.item(), share, atol=0.01, rtol=0)


def test_intervals_that_are_wide_enough_stay_as_they_are() -> None:
    forecast = torch.tensor([-9.0, -5.0, 0.0, 5.0, 9.0]).expand(100, -1)

    assert not widening_margins(forecast, torch.zeros(100), PROBABILITIES).any()


def test_wider_intervals_never_get_smaller_margins() -> None:
    forecast = torch.tensor([-9.0, -0.1, 0.0, 0.1, 9.0]).expand(100, -1)

    margins = widening_margins(forecast, torch.linspace(-1, 1, 100), PROBABILITIES)

    assert (margins.diff() >= 0).all()
    assert margins[2] == 0


def test_values_count_by_their_weights() -> None:
    forecast, actual = torch.zeros(200, 5), torch.cat([torch.ones(100), torch.full((100,), 9.0)])
    weight = torch.where(actual > 5, 0.01, 1.0)

    margins = widening_margins(forecast, actual, PROBABILITIES, weight)

    assert margins.tolist() == [-1, -1, 0, 1, 1]


def test_what_few_values_show_is_widened_for_the_one_to_come() -> None:
    forecast, actual = torch.zeros(4, 5), torch.tensor([1.0, 2.0, 3.0, 4.0])

    margins = widening_margins(forecast, actual, PROBABILITIES)

    assert margins[3] == 3  # 60 % of five values, of which the fifth may be the largest
    assert margins[4] == 4


def trial_of(errors: torch.Tensor, fixed_errors: torch.Tensor, *, step: int = 1) -> Trial:
    """Forecasts of zero, without any width, that miss by the given errors (M, H)."""
    quantiles = torch.zeros(*errors.shape, len(PROBABILITIES))
    return Trial(quantiles, errors - fixed_errors, errors, torch.ones_like(errors, dtype=torch.bool), step)


def test_far_steps_get_margins_of_their_own() -> None:
    growing = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)

    margins = margins_by_step([(trial_of(growing, growing, step=8), math.inf)], PROBABILITIES)

    assert margins.shape == (8, 5)
    torch.testing.assert_close(margins[[0, 7], 4], torch.tensor([1.645, 8 * 1.645]), rtol=0.2, atol=0)
    assert (margins[:, 4].diff() > 0).all()


def test_errors_of_windows_that_overlap_count_less() -> None:
    small, large = torch.ones(600, 8), torch.full((60, 8), 5.0)

    apart = margins_by_step([(trial_of(small, small, step=8), math.inf), (trial_of(large, large), 20.0)], PROBABILITIES)
    close = margins_by_step([(trial_of(small, small, step=1), math.inf), (trial_of(large, large), 20.0)], PROBABILITIES)

    assert apart[-1, 4] == 1  # 600 against 60 / 8
    assert close[-1, 4] == 5  # 600 / 8 against 60 / 8


def test_a_step_that_never_came_takes_the_margin_of_those_before() -> None:
    trial = trial_of(torch.ones(50, 4), torch.ones(50, 4))
    trial.counted[:, 2:] = False

    margins = margins_by_step([(trial, math.inf)], PROBABILITIES)

    assert margins[:, 4].tolist() == [1, 1, 1, 1]


def test_the_share_of_errors_is_believed_as_far_as_it_was_seen() -> None:
    half, whole = torch.full((40, 2), 0.5), torch.ones(40, 2)

    few, many = (error_share(trial_of(half[:count], whole[:count], step=2)) for count in (1, 40))

    assert 0.9 < few < 1
    assert 0.5 < many < 0.6


def test_known_rows_stand_in_with_what_the_mixture_missed() -> None:
    known = trial_of(torch.zeros(3, 2), torch.tensor([[4.0, -2.0]]).expand(3, -1))

    standing_in = stand_in(known, 0.5)

    assert (standing_in.actual - standing_in.median).tolist() == [[2.0, -1.0]] * 3


def loader_of(values: torch.Tensor, sizes: NetworkConfig) -> DataLoader[Windows]:
    """Windows at every origin of one series."""
    pool = SeriesPool.from_lengths(values.numpy(), np.array([len(values)]))
    origins = torch.arange(4, len(values) - 1)
    windows = WindowDataset(pool, torch.zeros_like(origins), origins, before=sizes.reach, after=sizes.horizon)
    return DataLoader(windows, batch_size=16, collate_fn=as_fetched)


@pytest.mark.parametrize("tested", [True, False])
def test_a_network_is_calibrated_on_targets_that_exist(tested: bool) -> None:
    torch.manual_seed(0)
    sizes = NetworkConfig(horizon=2, season_lengths=(2,), quantiles=PROBABILITIES, patch_length=2, embedding_dim=8)
    network = ForecastNetwork(sizes).eval()
    values = torch.randn(60, dtype=torch.float64)
    values[40] = torch.nan
    loader = loader_of(values, sizes)

    calibrate(network, loader if tested else None, loader, least_history=2)

    assert 0 < network.margins.max() < 20
    assert network.margins.isfinite().all()
    assert 0 <= network.path_correlation < 1


def test_a_series_without_a_value_leaves_a_network_as_it_is() -> None:
    sizes = NetworkConfig(horizon=2, season_lengths=(2,), quantiles=PROBABILITIES, patch_length=2, embedding_dim=8)
    network = ForecastNetwork(sizes).eval()
    loader = loader_of(torch.full((20,), torch.nan, dtype=torch.float64), sizes)

    calibrate(network, loader, loader, least_history=2)

    assert not network.margins.any()
