"""A linear map from look-backs to what followed them: ridge regression on training windows, in closed form.

Long horizons of few, smooth series ask for little more (Toner & Darlow, 2024), and gradient descent overfits it. What
few weights can say of it, the seasonal map, is what the penalty shrinks it towards.

Shapes: M windows, L values of a look-back, newest last, H horizon.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xlstm_ts.least_squares import Moments, Pairs, join, squared_error
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.seasonal_map import seasonal_map
from xlstm_ts.windows import WindowDataset, Windows

# In units of what inputs weigh in squares: from next to no penalty to one that leaves little.
SEASONAL_STRENGTHS = (0.1, 1.0, 10.0)
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
CHOICES = tuple(product(SEASONAL_STRENGTHS, STRENGTHS))
USUAL = (1.0, 1.0)  # where there is nothing to choose by
# Of the training time, each forecast by a map of the others: held-out rows alone tell of one part of the year.
BLOCKS = 4
# Neighbouring windows share almost all of their values: beyond so many, some stand for all.
MOST_TRAINED, MOST_HELD_OUT = 65_536, 8_192
WINDOWS_AT_A_TIME = 1_024


def read_pairs(
    data: Dataset[Windows], network: ForecastNetwork, *, unit: str, most: int
) -> Iterator[tuple[Tensor, Pairs]]:
    """Indices (M,) of windows in the data, and pairs from them, about ``most`` in all.

    The look-backs begin within their series, but for up to half of a short one: values that never were teach weights
    of zero.

    Args:
        data: windows of at least a network's reach before an origin and its horizon from it on.
        network: that scales them.
        unit: of values, as in ``TrainingConfig.loss_unit``.
        most: windows in all.
    """
    assert isinstance(data, WindowDataset)
    reach, horizon, lookback = network.config.reach, network.config.horizon, network.config.linear_lookback
    history = data.origins - data.pool.starts[data.series]
    whole = history >= (data.pool.lengths // 2).clamp(max=lookback)[data.series]
    for indices in torch.arange(0, len(data), -(-len(data) // most)).split(WINDOWS_AT_A_TIME):
        rows, deviations = data.__getitems__(indices.tolist())
        past, future = rows.steps(slice(-reach - horizon, -horizon)), rows.steps(slice(-horizon, None))
        tokens = network.tokenise(past, stride=1)
        ratio = (tokens.scale.scale / deviations[:, None, None]).float() if unit == "series" else 1.0
        behind = tokens.history[..., -lookback:] * ratio
        ahead = torch.where(future.seen[:, None], tokens.scale.normalise(future.values[:, None]) * ratio, 0.0)
        # Windows at the end of a series hold the start of a horizon alone.
        kept = whole[indices] & future.seen[:, -1]
        yield indices[kept], Pairs(behind[kept, 0], ahead[kept, 0], future.seen[kept])


def blocks_of(data: WindowDataset, horizon: int) -> Tensor:
    """In which block of its series' origins the values ahead of each window lie (M,); ``BLOCKS`` where in two."""
    first = torch.full_like(data.pool.starts, torch.iinfo(torch.int64).max)
    first = first.scatter_reduce(0, data.series, data.origins, "amin")[data.series]
    length = data.pool.stops[data.series] - first
    begins, ends = (BLOCKS * (data.origins + step - first) // length for step in (0, horizon - 1))
    return torch.where(begins == ends, begins, BLOCKS)


def read_blocks(data: Dataset[Windows], network: ForecastNetwork, *, unit: str) -> list[Moments]:
    """The moments of each block of training windows, and, last, of those windows that lie in two."""
    assert isinstance(data, WindowDataset)
    sizes = network.config
    block = blocks_of(data, sizes.horizon)
    found = [Moments.none(sizes.linear_lookback, sizes.horizon)] * (BLOCKS + 1)
    for indices, pairs in read_pairs(data, network, unit=unit, most=MOST_TRAINED):
        for number in block[indices].unique().tolist():
            found[number] = join([found[number], Moments.of(pairs.select(block[indices] == number))])
    return found


def linear_maps(
    moments: Moments, *, season: int, seasonal_strengths: Sequence[float], strengths: Sequence[float]
) -> Iterator[Tensor]:
    """The map (L, H) of least squares for each pair of strengths: of the seasonal map's penalty, of that on the rest.

    The rest, what goes beyond the seasonal map, is penalised with the square of a value's age, from one season on: what
    is long past is to matter little, so that the length of the look-back hardly does.
    """
    inputs, outputs, _ = moments.means()
    age = torch.arange(len(inputs) - 1, -1, -1, dtype=inputs.dtype)
    trust = (season / (season + age))[:, None]
    # Inputs times trust under an even penalty are inputs under one that grows.
    values, vectors = torch.linalg.eigh(trust * inputs * trust.T)
    unit = values.mean().clamp(min=torch.finfo(values.dtype).eps)  # of flat series: zero
    for seasonal_strength in seasonal_strengths:
        shared = seasonal_map(moments, season=season, strength=seasonal_strength)
        turned = vectors.T @ (trust * (outputs - inputs @ shared))
        for strength in strengths:
            yield shared + trust * (vectors @ (turned / (values + strength * unit)[:, None]))


def log_errors(known: Moments, unknown: Moments, *, season: int) -> Tensor:
    """The logarithm of the squared error on ``unknown`` of a map of what is known, for each of ``CHOICES``."""
    maps = linear_maps(known, season=season, seasonal_strengths=SEASONAL_STRENGTHS, strengths=STRENGTHS)
    return torch.stack([squared_error(each, unknown) for each in maps]).log()


def fit_linear_map(
    train: DataLoader[Windows], held_out: DataLoader[Windows] | None, network: ForecastNetwork, *, unit: str
) -> Tensor:
    """The map (L, H) of training windows, under the penalties with which maps forecast best what they did not see.

    Without a window that holds a whole horizon, all zero. What a map did not see is each block of the training time,
    forecast by a map of the others, and held-out windows, forecast by a map of all blocks. Each counts alike, by the
    logarithm of its error.

    Args:
        train, held_out: loaders of windows.
        network: that the map is for.
        unit: as in ``TrainingConfig.loss_unit``.
    """
    sizes, season = network.config, network.config.season_lengths[0]
    *blocks, between = read_blocks(train.dataset, network, unit=unit)
    whole = join([*blocks, between])
    if not whole.windows:
        return torch.zeros(sizes.linear_lookback, sizes.horizon)
    trials = [(join([*blocks[:number], *blocks[number + 1 :]]), block) for number, block in enumerate(blocks)]
    if held_out is not None:
        unseen = read_pairs(held_out.dataset, network, unit=unit, most=MOST_HELD_OUT)
        nothing = Moments.none(sizes.linear_lookback, sizes.horizon)
        trials.append((whole, join([nothing, *(Moments.of(pairs) for _, pairs in unseen)])))
    errors = [log_errors(*trial, season=season) for trial in trials if all(moments.windows > 0 for moments in trial)]
    seasonal_strength, strength = CHOICES[int(torch.stack(errors).mean(0).argmin())] if errors else USUAL
    return next(linear_maps(whole, season=season, seasonal_strengths=[seasonal_strength], strengths=[strength]))
