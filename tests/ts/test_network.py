"""The network is causal, carries its state, ignores padding and trains all its parameters."""

import pytest
import torch

from xlstm_ts.network import ForecastNetwork, NetworkConfig

CONFIG = NetworkConfig(
    horizon=6,
    season_lengths=(4, 8),
    quantiles=(0.1, 0.5, 0.9),
    patch_length=3,
    season_repeats=2,
    embedding_dim=16,
    num_heads=2,
)
LOOKBACK = CONFIG.reach - CONFIG.patch_length


@pytest.fixture
def network() -> ForecastNetwork:
    torch.manual_seed(0)
    return ForecastNetwork(CONFIG).eval()


def window(tokens: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random values long enough for so many tokens, all of them seen."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, LOOKBACK + tokens * CONFIG.patch_length)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).cumsum(1)
    return values, torch.ones(shape, dtype=torch.bool)


def test_every_token_forecasts_every_quantile_of_every_step(network: ForecastNetwork) -> None:
    quantiles, tokens, _ = network(*window(tokens=5))

    assert quantiles.shape == (2, 5, 6, 3)
    assert tokens.scale.loc.shape == (2, 5, 1)


def test_quantiles_are_monotone(network: ForecastNetwork) -> None:
    quantiles, *_ = network(*window(tokens=5))

    assert (quantiles.diff(dim=-1) > 0).all()


def test_every_parameter_receives_a_gradient(network: ForecastNetwork) -> None:
    network(*window(tokens=5))[0].sum().backward()

    without = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_later_values_do_not_reach_earlier_forecasts(network: ForecastNetwork) -> None:
    values, seen = window(tokens=5)
    changed = values.clone()
    changed[:, -2 * CONFIG.patch_length :] += 100

    before, after = network(values, seen)[0], network(changed, seen)[0]

    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_a_carried_state_continues_as_if_all_had_been_read_at_once(network: ForecastNetwork) -> None:
    values, seen = window(tokens=5)
    split = LOOKBACK + 3 * CONFIG.patch_length
    whole, _, final = network(values, seen)

    first, _, state = network(values[:, :split], seen[:, :split])
    second, _, end = network(values[:, split - LOOKBACK :], seen[:, split - LOOKBACK :], state)

    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, final, rtol=1e-5, atol=1e-5)


def test_values_older_than_the_reach_act_through_the_state(network: ForecastNetwork) -> None:
    values, seen = window(tokens=7)
    changed = values.clone()
    changed[:, LOOKBACK : LOOKBACK + CONFIG.patch_length] += (
        5  # the first token's patch, 18 values before the last one's
    )

    assert not torch.equal(network(values, seen, origins=1)[0], network(changed, seen, origins=1)[0])


def test_padding_before_a_series_leaves_no_trace(network: ForecastNetwork) -> None:
    values, seen = window(tokens=3)
    more = 4 * CONFIG.patch_length
    padded = torch.cat([torch.full((2, more), 1e6, dtype=torch.float64), values], 1)
    known = torch.cat([torch.zeros(2, more, dtype=torch.bool), seen], 1)
    known[:, : more + LOOKBACK] = False
    begins = torch.zeros_like(seen)
    begins[:, LOOKBACK:] = True

    torch.testing.assert_close(
        network(padded, known, origins=3)[0], network(values, begins, origins=3)[0], rtol=1e-5, atol=1e-5
    )


def test_the_newest_origins_are_those_of_all(network: ForecastNetwork) -> None:
    values, seen = window(tokens=5)

    torch.testing.assert_close(network(values, seen, origins=2)[0], network(values, seen)[0][:, -2:])
