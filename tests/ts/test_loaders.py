"""Held-out tails are chosen by a rule and never train."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xlstm_ts.loaders import tail_loader, training_loader, validation_step, validation_tails
from xlstm_ts.network import NetworkConfig
from xlstm_ts.windows import SeriesPool

from .conftest import TRAINING

SIZES = NetworkConfig(horizon=6, season_lengths=(4,), quantiles=(0.1, 0.5, 0.9), patch_length=4)


def tails_of(lengths: list[int], val_size: int | None) -> list[int]:
    return validation_tails(torch.tensor(lengths), val_size, horizon=6, kept=8).tolist()


def test_a_twentieth_of_a_long_series_is_held_out_in_whole_horizons() -> None:
    assert tails_of([119], None) == [0]
    assert tails_of([120], None) == [6]
    assert tails_of([500], None) == [24]


def test_tails_of_few_series_are_validated_at_more_origins_than_those_of_many() -> None:
    assert validation_step(torch.full((1000,), 48), horizon=48) == 48
    assert validation_step(torch.full((1000,), 4800), horizon=48) == 48
    assert validation_step(torch.full((1000,), 480), horizon=48) == 15
    assert validation_step(torch.full((7,), 2880), horizon=720) == 19
    assert validation_step(torch.tensor([960]), horizon=48) == 1


def test_short_series_share_a_twentieth_among_them() -> None:
    assert tails_of([60] * 6, None) == [0, 6, 0, 6, 0, 6]


def test_a_series_that_would_not_keep_two_seasons_holds_out_nothing() -> None:
    assert tails_of([14, 15], 6) == [0, 6]


def test_held_out_values_never_train() -> None:
    lengths, tails = np.array([50, 30]), torch.tensor([6, 6])
    pool = SeriesPool.from_lengths(np.arange(80.0), lengths)
    pool.rows.values[0, [*range(44, 50), *range(74, 80)]] = torch.nan

    batches = list(training_loader(pool.without_tails(tails), SIZES, TRAINING))

    assert all(bool(batch.rows.values[batch.rows.seen].isfinite().all()) for batch in batches)


def test_held_out_values_are_the_targets_of_the_tail_loader() -> None:
    pool = SeriesPool.from_lengths(np.arange(80.0), np.array([50, 30]))

    (batch,) = tail_loader(pool, torch.tensor([6, 6]), SIZES, TRAINING, step=6)

    assert batch.rows.values[:, -6:].tolist() == [list(range(44, 50)), list(range(74, 80))]


def test_held_out_values_do_not_set_the_unit_that_they_are_measured_in() -> None:
    values = np.arange(80.0)
    tails = torch.tensor([6, 6])
    wilder = values.copy()
    wilder[44:50] *= 1000

    units = [
        next(iter(tail_loader(SeriesPool.from_lengths(each, np.array([50, 30])), tails, SIZES, TRAINING, step=6))).unit
        for each in (values, wilder)
    ]

    assert torch.equal(*units)
    assert units[0].tolist() == pytest.approx([values[:44].std(), values[50:74].std()])


def test_an_epoch_is_two_passes_over_few_windows_by_default() -> None:
    pool = SeriesPool.from_lengths(np.arange(24.0), np.array([24]))

    batches = list(training_loader(pool, SIZES, replace(TRAINING, steps_per_epoch=None)))

    assert len(batches) == 5  # 20 origins, twice, in batches of 8


def test_an_epoch_has_the_configured_number_of_steps() -> None:
    pool = SeriesPool.from_lengths(np.arange(80.0), np.array([50, 30]))

    assert [len(batch.unit) for batch in training_loader(pool, SIZES, TRAINING)] == [8] * 4
