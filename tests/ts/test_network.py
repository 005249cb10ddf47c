"""The network is causal, ignores what is missing, and trains all its parameters."""

from dataclasses import replace

import pytest
import torch

from xlstm_ts.embeddings import CovariateSizes
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.rows import Rows, unseen_rows

CONFIG = NetworkConfig(
    horizon=6,
    season_lengths=(4, 8),
    quantiles=(0.1, 0.5, 0.9),
    patch_length=3,
    season_repeats=2,
    embedding_dim=16,
    num_heads=2,
)
LOOKBACK, H = CONFIG.reach - CONFIG.patch_length, CONFIG.horizon
WITH_COVARIATES = replace(
    CONFIG,
    static=CovariateSizes(numeric=1, cardinalities=(3,)),
    known=CovariateSizes(numeric=2, cardinalities=(4,)),
    past=CovariateSizes(numeric=1),
    linear_lookback=10,
)


@pytest.fixture
def network() -> ForecastNetwork:
    torch.manual_seed(0)
    return ForecastNetwork(CONFIG).eval()


def window(tokens: int, batch: int = 2) -> Rows:
    """Random values long enough for so many tokens, all of them seen, and a horizon ahead."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, LOOKBACK + tokens * CONFIG.patch_length + H)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).cumsum(1)
    return unseen_rows(*shape).with_values(values)


def with_covariates(rows: Rows) -> Rows:
    generator = torch.Generator().manual_seed(2)
    shape = rows.values.shape
    categories = torch.randint(3, (*shape, 2), generator=generator)
    return rows._replace(numeric=torch.randn(*shape, 4, generator=generator), categories=categories)


def test_every_token_forecasts_every_quantile_of_every_step(network: ForecastNetwork) -> None:
    quantiles, tokens = network(window(tokens=5))

    assert quantiles.shape == (2, 5, 6, 3)
    assert tokens.scale.loc.shape == (2, 5, 1)


def test_quantiles_are_monotone(network: ForecastNetwork) -> None:
    quantiles, _ = network(window(tokens=5))

    assert (quantiles.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("config", [CONFIG, WITH_COVARIATES])
def test_every_parameter_receives_a_gradient(config: NetworkConfig) -> None:
    torch.manual_seed(0)
    network = ForecastNetwork(config)
    rows = window(tokens=5)

    network(with_covariates(rows) if config is WITH_COVARIATES else rows)[0].square().sum().backward()

    without = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_later_values_do_not_reach_earlier_forecasts(network: ForecastNetwork) -> None:
    rows = window(tokens=5)
    changed = rows.values.clone()
    changed[:, -2 * CONFIG.patch_length - H :] += 100

    before, after = network(rows)[0], network(rows.with_values(changed))[0]

    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_only_known_covariates_ahead_reach_a_forecast() -> None:
    torch.manual_seed(0)
    network = ForecastNetwork(WITH_COVARIATES).eval()
    rows = with_covariates(window(tokens=2))

    def forecast_with(column: int) -> torch.Tensor:
        numeric = rows.numeric.clone()
        numeric[:, -H:, column] += 1
        return network(rows._replace(numeric=numeric), origins=1)[0]

    now = network(rows, origins=1)[0]
    static, known, past = (forecast_with(column) for column in (0, 1, 3))
    assert torch.equal(now, static)
    assert torch.equal(now, past)
    assert not torch.allclose(now, known)


def test_values_that_were_not_seen_have_no_influence(network: ForecastNetwork) -> None:
    rows = window(tokens=4)
    seen = torch.rand(rows.seen.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    other = torch.where(seen, rows.values, 1e6)

    one, two = (network(rows._replace(values=values, seen=seen))[0] for values in (rows.values, other))

    assert torch.equal(one, two)


def test_a_carried_state_continues_as_if_all_had_been_read_at_once(network: ForecastNetwork) -> None:
    rows = window(tokens=5).steps(slice(0, -H))
    split = LOOKBACK + 3 * CONFIG.patch_length
    whole, final = network.encode(rows)

    first, state = network.encode(rows.steps(slice(0, split)))
    second, end = network.encode(rows.steps(slice(split - LOOKBACK, None)), state)

    torch.testing.assert_close(torch.cat([first.hidden, second.hidden], 1), whole.hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, final, rtol=1e-5, atol=1e-5)


def test_values_older_than_the_reach_act_through_the_state(network: ForecastNetwork) -> None:
    rows = window(tokens=7)
    changed = rows.values.clone()
    # The first token's patch, 18 values before the last one's.
    changed[:, LOOKBACK : LOOKBACK + CONFIG.patch_length] += 5

    assert not torch.equal(network(rows, origins=1)[0], network(rows.with_values(changed), origins=1)[0])


def test_padding_before_a_series_leaves_no_trace(network: ForecastNetwork) -> None:
    rows = window(tokens=3)
    more = 4 * CONFIG.patch_length
    begins = rows.seen.clone()
    begins[:, :LOOKBACK] = False
    rows = rows._replace(seen=begins)
    padding = unseen_rows(2, more)._replace(values=torch.full((2, more), 1e6, dtype=torch.float64))

    padded = Rows(*(torch.cat(fields, 1) for fields in zip(padding, rows, strict=True)))

    torch.testing.assert_close(network(padded, origins=3)[0], network(rows, origins=3)[0], rtol=1e-5, atol=1e-5)


def test_the_newest_origins_are_those_of_all(network: ForecastNetwork) -> None:
    torch.testing.assert_close(network(window(5), origins=2)[0], network(window(5))[0][:, -2:])


@pytest.mark.parametrize("season", [1, 4])
def test_a_short_season_is_scaled_by_a_dozen_values_and_where_they_are_flat_by_twenty(season: int) -> None:
    sizes = replace(CONFIG, season_lengths=(season,))
    values = torch.randn(1, 20, dtype=torch.float64)
    silent = values.clone()
    silent[:, -12:] = 0

    def scale_of(rows: torch.Tensor) -> torch.Tensor:
        return ForecastNetwork(sizes).tokenise(unseen_rows(*rows.shape).with_values(rows), stride=1).scale.scale

    torch.testing.assert_close(scale_of(values).squeeze(), values[0, -12:].std(correction=0))
    torch.testing.assert_close(scale_of(silent).squeeze(), silent[0, -20:].std(correction=0))
