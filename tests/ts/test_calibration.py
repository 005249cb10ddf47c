"""Margins widen intervals just enough, and never make quantiles cross."""

import torch

from xlstm_ts.calibration import calibrate, widening_margins
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.rows import unseen_rows
from xlstm_ts.windows import Windows

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


def test_a_network_is_calibrated_on_targets_that_exist() -> None:
    torch.manual_seed(0)
    sizes = NetworkConfig(horizon=2, season_lengths=(2,), quantiles=PROBABILITIES, patch_length=2, embedding_dim=8)
    network = ForecastNetwork(sizes).eval()
    values = torch.randn(5, sizes.reach + 2, dtype=torch.float64)
    values[:, -1] = 1e6
    seen = torch.ones_like(values, dtype=torch.bool)
    seen[:, -1] = False

    rows = unseen_rows(5, values.shape[1])._replace(values=values, seen=seen)
    calibrate(network, [Windows(rows, torch.ones(5))], least_history=2)

    assert 0 < network.margins.max() < 20
