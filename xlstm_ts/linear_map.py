"""A linear map from look-backs to what followed them: ridge regression on training windows, in closed form.

Long horizons of few, smooth series ask for little more (Toner & Darlow, 2024), and gradient descent overfits it.

Shapes: M windows, L values of a look-back, newest last, H horizon.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xlstm_ts.network import ForecastNetwork
from xlstm_ts.windows import WindowDataset, Windows

# In units of what a look-back's values weigh in squares: from next to no penalty to one that leaves little of a map.
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
USUAL_STRENGTH = 0.1  # where nothing is held out to choose by
# Neighbouring windows share almost all of their values: beyond so many, some stand for all.
MOST_TRAINED, MOST_HELD_OUT = 65_536, 8_192
WINDOWS_AT_A_TIME = 1_024


class Pairs(NamedTuple):
    """Look-backs and what followed them, both relative to the location of the look-back.

    Attributes:
        behind: (M, L), zero where not seen.
        ahead: (M, H), zero where not seen.
        came: (M, H) bool: seen.
    """

    behind: Tensor
    ahead: Tensor
    came: Tensor


def read_pairs(data: Dataset[Windows], network: ForecastNetwork, *, unit: str, most: int) -> Iterator[Pairs]:
    """Pairs from windows, about ``most`` in all.

    Args:
        data: windows of at least a network's reach before an origin and its horizon from it on.
        network: that scales them.
        unit: of values, as in ``TrainingConfig.loss_unit``.
        most: windows in all.
    """
    assert isinstance(data, WindowDataset)
    reach, horizon, lookback = network.config.reach, network.config.horizon, network.config.linear_lookback
    for indices in torch.arange(0, len(data), -(-len(data) // most)).split(WINDOWS_AT_A_TIME):
        rows, deviations = data.__getitems__(indices.tolist())
        past, future = rows.steps(slice(-reach - horizon, -horizon)), rows.steps(slice(-horizon, None))
        tokens = network.tokenise(past, stride=1)
        ratio = (tokens.scale.scale / deviations[:, None, None]).float() if unit == "series" else 1.0
        behind = tokens.history[..., -lookback:] * ratio
        ahead = torch.where(future.seen[:, None], tokens.scale.normalise(future.values[:, None]) * ratio, 0.0)
        yield Pairs(behind[:, 0], ahead[:, 0], future.seen)


def normal_equations(parts: Iterable[Pairs], lookback: int, horizon: int) -> tuple[Tensor, Tensor]:
    """Mean products of look-backs with themselves (L, L) and with what followed (L, H), each of what was seen."""
    inputs = torch.zeros(lookback, lookback, dtype=torch.float64)
    outputs = torch.zeros(lookback, horizon, dtype=torch.float64)
    windows, counts = 0, torch.zeros(horizon)
    for part in parts:
        # Windows at the end of a series hold the start of a horizon alone.
        behind, ahead, came = (field[part.came[:, -1]] for field in part)
        inputs += behind.T @ behind
        outputs += behind.T @ ahead
        windows += len(behind)
        counts += came.sum(0)
    return inputs / max(windows, 1), outputs / counts.clamp(min=1)


def ridge_path(inputs: Tensor, outputs: Tensor, *, season: int, strengths: Sequence[float]) -> Iterator[Tensor]:
    """The map (L, H) of least squares under penalties of each strength.

    A weight's penalty grows with the square of its value's age, from one season on: what is long past is to matter
    little, so that the length of the look-back hardly does.
    """
    age = torch.arange(len(inputs) - 1, -1, -1, dtype=inputs.dtype)
    trust = season / (season + age)
    # Inputs times trust under an even penalty are inputs under one that grows.
    values, vectors = torch.linalg.eigh(trust[:, None] * inputs * trust)
    turned = vectors.T @ (trust[:, None] * outputs)
    for strength in strengths:
        raised = values + strength * values.mean().clamp(min=torch.finfo(values.dtype).tiny)  # without data: all zero
        yield trust[:, None] * (vectors @ (turned / raised[:, None]))


def join_pairs(parts: Iterable[Pairs]) -> Pairs:
    """All pairs as one."""
    return Pairs(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def squared_error(weight: Tensor, pairs: Pairs) -> float:
    """Mean squared error of a map on what was seen."""
    miss = pairs.behind @ weight.to(pairs.behind) - pairs.ahead
    return float(torch.where(pairs.came, miss, 0.0).square().sum() / pairs.came.sum().clamp(min=1))


def fit_linear_map(
    train: DataLoader[Windows], held_out: DataLoader[Windows] | None, network: ForecastNetwork, *, unit: str
) -> Tensor:
    """The map (L, H) that forecasts held-out windows best, of those that training windows ask for.

    Args:
        train, held_out: loaders of windows; without any held out, a usual strength is taken.
        network: that the map is for.
        unit: as in ``TrainingConfig.loss_unit``.
    """
    sizes, season = network.config, network.config.season_lengths[0]
    parts = read_pairs(train.dataset, network, unit=unit, most=MOST_TRAINED)
    equations = normal_equations(parts, sizes.linear_lookback, sizes.horizon)
    if held_out is None:
        return next(ridge_path(*equations, season=season, strengths=[USUAL_STRENGTH]))
    chosen_by = join_pairs(read_pairs(held_out.dataset, network, unit=unit, most=MOST_HELD_OUT))
    return min(ridge_path(*equations, season=season, strengths=STRENGTHS), key=partial(squared_error, pairs=chosen_by))
