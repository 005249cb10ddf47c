"""What trains and what is held out: the split of a pool, and the loaders of both parts."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Sampler

from xlstm_ts.network import NetworkConfig
from xlstm_ts.training_config import TrainingConfig
from xlstm_ts.windows import SeriesPool, WindowDataset, Windows, tail_origins, training_origins

VALIDATION_BATCH = 512
# At least so many of the first in a long tail, or of the second in all.
VALIDATION_ORIGINS, VALIDATION_WINDOWS = 32, 1024
VALIDATION_SHARE = 20  # one value in so many validates
REHEARSED_HORIZONS = (2, 1)
# An epoch: more passes over one short series teach it by heart, more steps gain little on thousands of windows.
PASSES = 2
LONGEST_EPOCH = 30


def validation_tails(lengths: Tensor, val_size: int | None, *, horizon: int, kept: int) -> Tensor:
    """How many last values of each series are held out (N,): none of a series that would not keep ``kept`` and more.

    By default, tails of one horizon or more are spread over the series so that they make up a twentieth of all values.
    """
    if val_size is None:
        horizons = (lengths / (VALIDATION_SHARE * horizon)).cumsum(0).floor().long()
        tails = horizon * horizons.diff(prepend=horizons.new_zeros(1))
    else:
        tails = torch.full_like(lengths, val_size)
    return torch.where(lengths - tails > kept, tails, 0)


def rehearsal_tails(lengths: Tensor, *, horizon: int, season_length: int) -> Tensor:
    """How many last values of each series a rehearsal does without (N,): two horizons, one, or all zero."""
    for horizons in REHEARSED_HORIZONS:
        tails = validation_tails(lengths, horizons * horizon, horizon=horizon, kept=season_length)
        if tails.any():
            break
    return tails


def validation_step(tails: Tensor, horizon: int) -> int:
    """Distance of the origins in held-out tails: a horizon, or less in long tails of few series, for enough origins."""
    longest = int(tails.max())
    if longest <= horizon:
        return horizon
    return max(1, min(horizon, longest // VALIDATION_ORIGINS, int(tails.sum()) // VALIDATION_WINDOWS))


def least_history(pool: SeriesPool, sizes: NetworkConfig) -> int:
    """Steps that must lie before a training origin: a season, or what the longest series of short ones can spare."""
    return max(1, min(sizes.season_lengths[0], int(pool.lengths.max()) - 1))


class EpochSampler(Sampler[int]):
    """Indices at random, with replacement; each epoch and each process of a group has its own, which repeat.

    So a training that is taken up again goes on with the windows that it would have had.
    """

    def __init__(self, population: int, num_samples: int, seed: int) -> None:
        self.population, self.num_samples, self.seed = population, num_samples, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch, rank))
        return iter(torch.randint(self.population, (self.num_samples,), generator=generator).tolist())


def derived_seed(seed: int, count: int, rank: int) -> int:
    """A seed of its own for each epoch or step, and each process."""
    return hash((seed, count, rank)) % 2**63


def training_windows(pool: SeriesPool, sizes: NetworkConfig, config: TrainingConfig) -> WindowDataset:
    """The windows around every origin with enough history."""
    longest = sizes.season_lengths[-1]
    origins = training_origins(pool, least_history=least_history(pool, sizes), wished_history=longest)
    return WindowDataset(pool, *origins, before=context_length(sizes, config), after=sizes.horizon)


def training_loader(pool: SeriesPool, sizes: NetworkConfig, config: TrainingConfig) -> DataLoader[Windows]:
    """An epoch of random windows."""
    windows = training_windows(pool, sizes, config)
    steps = config.steps_per_epoch or min(LONGEST_EPOCH, math.ceil(PASSES * len(windows) / config.batch_size))
    sampler = EpochSampler(len(windows), steps * config.batch_size, config.seed)
    return DataLoader(windows, batch_size=config.batch_size, sampler=sampler, collate_fn=as_fetched)


def tail_loader(
    pool: SeriesPool, tails: Tensor, sizes: NetworkConfig, config: TrainingConfig, *, step: int
) -> DataLoader[Windows]:
    """The windows that forecast the last ``tails`` (N,) values of each series, from an origin every ``step`` values."""
    origins = tail_origins(pool, tails, step=step)
    measured = pool.in_units_without(tails)
    windows = WindowDataset(measured, *origins, before=context_length(sizes, config), after=sizes.horizon, step=step)
    return DataLoader(windows, batch_size=VALIDATION_BATCH, collate_fn=as_fetched)


def review_loader(pool: SeriesPool, sizes: NetworkConfig, config: TrainingConfig) -> DataLoader[Windows]:
    """Windows of training, evenly spread, in order."""
    every = training_windows(pool, sizes, config)
    step = -(-len(every) // VALIDATION_WINDOWS)
    before, after = every.before, every.after
    some = WindowDataset(pool, every.series[::step], every.origins[::step], before=before, after=after, step=step)
    return DataLoader(some, batch_size=VALIDATION_BATCH, collate_fn=as_fetched)


def context_length(sizes: NetworkConfig, config: TrainingConfig) -> int:
    """Values of a window up to its last origin."""
    return sizes.reach + (config.context_tokens - 1) * sizes.patch_length


def as_fetched(batch: Any) -> Any:
    """The collate function of a data set that fetches whole batches."""
    return batch
