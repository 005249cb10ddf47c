"""Before training, a forecaster knows the best mixture of past values, or the linear map, and how far these miss."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from xlstm_ts.loaders import training_loader
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.start import find_start
from xlstm_ts.windows import SeriesPool

from .conftest import TRAINING

SIZES = NetworkConfig(
    horizon=3, season_lengths=(5,), quantiles=(0.1, 0.5, 0.9), patch_length=5, embedding_dim=8, num_heads=2
)
CONFIG = replace(TRAINING, max_epochs=1, steps_per_epoch=1, val_size=0)


def start_of(sizes: NetworkConfig) -> tuple[ForecastNetwork, ForecastNetwork, ForecastNetwork]:
    """A new network, the one that training gets of it, and the one with the weights found; the series is a walk."""
    torch.manual_seed(0)
    new = ForecastNetwork(sizes)
    trained, found = copy.deepcopy(new), copy.deepcopy(new)
    values = np.random.default_rng(0).normal(size=300).cumsum()
    pool = SeriesPool.from_lengths(values, np.array([300]))
    weights = find_start(trained, training_loader(pool, sizes, CONFIG), None, unit="origin")
    found.load_state_dict(copy.deepcopy(weights))
    return new, trained, found


@pytest.mark.parametrize("lookback", [0, 10])
def test_the_weights_found_answer_every_state_alike(lookback: int) -> None:
    *_, found = start_of(replace(SIZES, linear_lookback=lookback))

    output = found.decoder.output
    assert not output.weight.any()
    assert output.bias.any()


def test_training_prefers_the_last_value_of_a_walk_and_keeps_the_random_last_layer() -> None:
    new, trained, found = start_of(SIZES)

    output, candidates = trained.decoder.output, new.candidates.index.shape[1]
    assert output.bias[:candidates].argmax() == 0
    torch.testing.assert_close(output.bias[:candidates], found.decoder.output.bias[:candidates])
    assert torch.equal(output.weight, new.decoder.output.weight)


def test_training_starts_with_the_linear_map_alone() -> None:
    _, trained, found = start_of(replace(SIZES, linear_lookback=10))

    weights, others = trained.state_dict(), found.state_dict()
    assert trained.candidates.linear_map.any()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_weights_found_expect_errors_as_large_as_the_mixture_makes() -> None:
    *_, found = start_of(SIZES)

    gaps = found.decoder.output.bias[-len(SIZES.quantiles) :]

    assert (gaps[[0, 2]] != 0).all()
    assert gaps[1] == 0
