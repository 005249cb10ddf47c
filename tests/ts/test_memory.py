"""A memory advanced row by row, in pieces or at once holds the same; missing values and padding are part of that."""

import numpy as np
import pytest
import torch

from xlstm_ts.memory import Memory, advance, empty_memory, newest, read_series, read_to_forecast
from xlstm_ts.network import ForecastNetwork, NetworkConfig
from xlstm_ts.windows import SeriesPool

CONFIG = NetworkConfig(
    horizon=5, season_lengths=(4,), quantiles=(0.1, 0.5, 0.9), patch_length=4, embedding_dim=16, num_heads=2
)
LENGTHS = np.array([53, 30, 1])
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def network() -> ForecastNetwork:
    torch.manual_seed(0)
    return ForecastNetwork(CONFIG).eval()


@pytest.fixture(scope="module")
def pool() -> SeriesPool:
    values = np.random.default_rng(0).normal(size=LENGTHS.sum()).cumsum()
    values[[5, 6, 20, 60, *range(30, 40)]] = np.nan
    return SeriesPool.from_lengths(values, LENGTHS)


def one_of(memory: Memory, series: int) -> Memory:
    return memory.series(torch.tensor([series]))


def rows_of(pool: SeriesPool, series: int):
    index = torch.tensor([series])
    return pool.windows(index, pool.stops[index], before=int(LENGTHS[series])).rows


@pytest.mark.parametrize("pieces", [[53], [1] * 53, [4] * 13 + [1], [2, 9, 1, 30, 11]])
def test_pieces_of_any_size_come_to_the_same_memory(
    network: ForecastNetwork, pool: SeriesPool, pieces: list[int]
) -> None:
    rows, memory, start, hidden = rows_of(pool, 0), empty_memory(network, 1), 0, []
    for size in pieces:
        memory, encoded = advance(network, memory, rows.steps(slice(start, start + size)))
        hidden.append(encoded.hidden)
        start += size
    whole, at_once = advance(network, empty_memory(network, 1), rows)

    torch.testing.assert_close(memory, whole, **TOLERANCE)
    torch.testing.assert_close(torch.cat(hidden, 1), at_once.hidden, **TOLERANCE)


def test_reading_to_forecast_alone_sees_the_same(network: ForecastNetwork, pool: SeriesPool) -> None:
    for series in range(3):
        index = torch.tensor([series])
        whole, alone = read_series(network, pool, index), read_to_forecast(network, pool, index)
        torch.testing.assert_close(alone.hidden, whole.hidden, **TOLERANCE)
        torch.testing.assert_close(alone.buffer, whole.buffer, **TOLERANCE)


def test_series_read_together_are_read_as_if_alone(network: ForecastNetwork, pool: SeriesPool) -> None:
    together = read_series(network, pool, torch.arange(3))

    for series in range(3):
        alone = read_series(network, pool, torch.tensor([series]))
        # States that saw padding alone may differ; nothing that is made of them does.
        ends = [advance(network, memory, rows_of(pool, 1))[1].hidden for memory in (one_of(together, series), alone)]
        torch.testing.assert_close(together.hidden[[series]], alone.hidden, **TOLERANCE)
        torch.testing.assert_close(*ends, **TOLERANCE)


def test_advancing_leaves_the_memory_it_began_with_alone(network: ForecastNetwork, pool: SeriesPool) -> None:
    memory = read_series(network, pool, torch.tensor([1]))
    before = newest(network, memory).hidden.clone()
    phases = [state.clone() for state in memory.phases]

    advance(network, memory, rows_of(pool, 2))

    assert torch.equal(newest(network, memory).hidden, before)
    assert all(map(torch.equal, phases, memory.phases))


def test_a_memory_has_one_size_however_much_was_read(network: ForecastNetwork, pool: SeriesPool) -> None:
    def size(memory: Memory) -> int:
        return sum(part.numel() for part in (*memory.buffer, memory.hidden, *memory.phases))

    assert size(read_series(network, pool, torch.tensor([0]))) == size(empty_memory(network, 1))
