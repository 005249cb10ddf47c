"""Vectorised windows equal what a loop over series would cut."""

import numpy as np
import pytest
import torch

from xlstm_ts.windows import SeriesPool, WindowDataset, tail_origins, training_origins

LENGTHS = np.array([7, 3, 5])


@pytest.fixture
def pool() -> SeriesPool:
    return SeriesPool.from_lengths(np.arange(15.0), LENGTHS)


def test_windows_equal_those_of_a_naive_loop(pool: SeriesPool) -> None:
    series, origins = training_origins(pool, least_history=1, wished_history=1)

    values, seen, *_ = pool.windows(series, origins, before=4, after=3).rows

    expected = []
    for number, (start, stop) in enumerate(zip(pool.starts.tolist(), pool.stops.tolist(), strict=True)):
        for origin in range(start + 1, stop):
            cut = [float(t) if start <= t < stop else None for t in range(origin - 4, origin + 3)]
            expected.append((number, cut))
    found = [
        (number, [value if known else None for value, known in zip(row, mask, strict=True)])
        for number, row, mask in zip(series.tolist(), values.tolist(), seen.tolist(), strict=True)
    ]
    assert found == expected


def test_a_series_without_its_tail_ends_before_it(pool: SeriesPool) -> None:
    shorter = pool.without_tails(torch.tensor([3, 0, 0]))

    _, origins = training_origins(shorter, least_history=2, wished_history=2)

    assert origins.tolist() == [2, 3, 9, 12, 13, 14]
    assert shorter.windows(torch.tensor([0]), torch.tensor([3]), before=1, after=3).rows.seen.tolist() == [
        [True, True, False, False]
    ]


def test_units_are_deviations_of_what_is_in_a_series(pool: SeriesPool) -> None:
    shorter = pool.without_tails(torch.tensor([3, 0, 5]))

    assert pool.units.tolist() == pytest.approx([np.std(np.arange(n)) for n in LENGTHS])
    assert shorter.units.tolist() == pytest.approx([np.std(np.arange(4)), np.std(np.arange(3)), 1.0])


def test_more_history_is_wished_for_where_half_of_a_series_can_give_it(pool: SeriesPool) -> None:
    series, origins = training_origins(pool, least_history=1, wished_history=3)

    first = {number: origins[series == number].min().item() for number in range(3)}
    assert first == {0: 3, 1: 7 + 1, 2: 10 + 2}


def test_origins_step_through_the_tails(pool: SeriesPool) -> None:
    series, origins = tail_origins(pool, torch.tensor([5, 0, 2]), step=2)

    assert (series.tolist(), origins.tolist()) == ([0, 0, 0, 2], [2, 4, 6, 13])


def test_a_batch_fetched_at_once_equals_its_windows_one_by_one(pool: SeriesPool) -> None:
    data = WindowDataset(pool, torch.tensor([0, 2]), torch.tensor([4, 12]), before=3, after=2)

    batch = data.__getitems__([1, 0])

    assert torch.equal(batch.rows.values[0], data[1].rows.values)
    assert torch.equal(batch.rows.seen[1], data[0].rows.seen)
