"""Forecasts from a memory: quantiles, sample paths, and horizons beyond the one that was trained.

Beyond the trained horizon a forecast goes on from paths of itself: each path is read into a copy of the memory, block
by block, and what the copies forecast is mixed.

Shapes: N series, H trained horizon, h steps ahead, K paths, Q quantiles.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from xlstm_ts.memory import Memory, advance, newest
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.rows import Rows, join_steps, unseen_rows

# Paths whose forecasts are mixed beyond the trained horizon: twice as many move medians by a hundredth of a scale.
MIXED_PATHS = 64
# Series or paths that are forecast at once: bounds the room that their memories and outputs take.
ROWS_AT_ONCE = 2048
SERIES_AT_ONCE = 256  # that are read at once

Draw = Callable[[Tensor, int], Tensor]  # quantiles (N, H, Q) of the steps from the given one on -> values (N, H)


@torch.inference_mode()
def forecast_quantiles(network: ForecastNetwork, memory: Memory, ahead: Rows, *, seed: int = 0) -> Tensor:
    """Quantiles (N, h, Q) float64 in units of the data.

    Args:
        network: in evaluation mode.
        memory: of N series; with its phases where h exceeds the trained horizon.
        ahead: covariates of the h next steps.
        seed: of the paths beyond the trained horizon; they do not depend on the other series.
    """
    steps = ahead.values.shape[1]
    far = steps > network.config.horizon
    scores = correlated_scores(network, (MIXED_PATHS, steps), seed) if far else None
    parts = []
    for index in _groups(memory, ROWS_AT_ONCE // MIXED_PATHS if far else ROWS_AT_ONCE):
        if scores is None:
            part = memory._replace(phases=())  # copies of states that nothing goes on from would be for nothing
            parts.append(block_quantiles(network, part.series(index), ahead.series(index)))
        else:
            every = index.repeat_interleave(MIXED_PATHS)
            draw = draw_at(network, scores.repeat(len(index), 1))
            blocks = roll(network, memory.series(every), ahead.series(every), draw)
            parts.append(torch.cat([_mixed(network, quantiles, len(index)) for quantiles, _ in blocks], 1))
    return torch.cat(parts)


@torch.inference_mode()
def sample_paths(network: ForecastNetwork, memory: Memory, ahead: Rows, *, num_paths: int, seed: int) -> Tensor:
    """Possible futures (N, K, h) float64 in units of the data: as a whole, not only step by step.

    The steps of a path hang together as much as the errors of held-out forecasts did.
    """
    count, steps = ahead.values.shape
    scores = correlated_scores(network, (count * num_paths, steps), seed).unflatten(0, (count, num_paths))
    parts = []
    for index in _groups(memory, max(1, ROWS_AT_ONCE // num_paths)):
        every = index.repeat_interleave(num_paths)
        draw = draw_at(network, scores[index].flatten(0, 1))
        blocks = roll(network, memory.series(every), ahead.series(every), draw)
        parts.append(torch.cat([values for _, values in blocks], 1).unflatten(0, (len(index), num_paths)))
    return torch.cat(parts)


def _groups(memory: Memory, size: int) -> tuple[Tensor, ...]:
    """Indices of the series, so many at a time."""
    return torch.arange(len(memory.hidden), device=memory.hidden.device).split(size)


def block_quantiles(network: ForecastNetwork, memory: Memory, ahead: Rows) -> Tensor:
    """Quantiles (N, h, Q) of at most the trained horizon."""
    steps, horizon = ahead.values.shape[1], network.config.horizon
    if steps < horizon:
        rest = unseen_rows(
            len(ahead.values),
            horizon - steps,
            numeric=ahead.numeric.shape[-1],
            categories=ahead.categories.shape[-1],
        )
        ahead = join_steps([ahead, rest.move(ahead.values.device)])
    known = network.known_ahead(ahead)
    encoded = newest(network, memory)
    scale = encoded.tokens.scale
    quantiles = network.quantiles(network.decode(encoded, known[:, None]), scale)
    return scale.restore(quantiles.flatten(2)).reshape(quantiles.shape)[:, 0, :steps]


def roll(network: ForecastNetwork, memory: Memory, ahead: Rows, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    """Forecast block by block, each from what the one before drew: quantiles (N, H, Q) and values (N, H) of each."""
    steps, horizon = ahead.values.shape[1], network.config.horizon
    for start in range(0, steps, horizon):
        block = ahead.steps(slice(start, start + horizon))
        quantiles = block_quantiles(network, memory, block)
        values = draw(quantiles, start)
        yield quantiles, values
        if start + horizon < steps:
            memory, _ = advance(network, memory, block.with_values(values))


def draw_at(network: ForecastNetwork, scores: Tensor) -> Draw:
    """Draw the value at which a normal distribution would have the given scores (N, h)."""
    grid = normal_scores(network.config.quantiles).to(scores)

    def draw(quantiles: Tensor, start: int) -> Tensor:
        wanted = scores[:, start : start + quantiles.shape[1]]
        right = torch.searchsorted(grid, wanted.contiguous()).clamp(1, len(grid) - 1)
        share = (wanted - grid[right - 1]) / (grid[right] - grid[right - 1])
        low, high = (quantiles.gather(-1, index.unsqueeze(-1)).squeeze(-1) for index in (right - 1, right))
        return low + share * (high - low)

    return draw


def correlated_scores(network: ForecastNetwork, shape: tuple[int, int], seed: int) -> Tensor:
    """Normal scores (paths, h) float64, each step's correlated with the last one's as held-out errors were."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    correlation = float(network.path_correlation)
    scores = [noise[:, 0]]
    for fresh in noise.unbind(1)[1:]:
        scores.append(correlation * scores[-1] + (1 - correlation**2) ** 0.5 * fresh)
    return torch.stack(scores, 1).to(network.margins.device)


def normal_scores(probabilities: Sequence[float]) -> Tensor:
    """Where a standard normal distribution has these probabilities below: (Q,) float64."""
    return torch.tensor([NormalDist().inv_cdf(p) for p in probabilities], dtype=torch.float64)


def _mixed(network: ForecastNetwork, quantiles: Tensor, count: int) -> Tensor:
    """The quantiles (N, H, Q) of a mixture with equal shares of K distributions, given by quantiles (N * K, H, Q)."""
    probabilities = torch.tensor(network.config.quantiles, dtype=torch.float64, device=quantiles.device)
    middles = (probabilities[1:] + probabilities[:-1]) / 2
    edges = torch.cat([probabilities.new_zeros(1), middles, probabilities.new_ones(1)])
    pooled = quantiles.unflatten(0, (count, -1)).movedim(1, 2).flatten(2)  # (N, H, K * Q)
    ordered, order = pooled.sort(-1)
    shares = edges.diff().repeat(quantiles.shape[0] // count)
    below = (shares[order].cumsum(-1) - shares[order] / 2) / shares.sum()
    wanted = probabilities.expand(*pooled.shape[:-1], -1).contiguous()
    right = torch.searchsorted(below, wanted).clamp(1, pooled.shape[-1] - 1)
    low, high = below.gather(-1, right - 1), below.gather(-1, right)
    share = ((wanted - low) / (high - low)).clamp(0, 1)
    return torch.lerp(ordered.gather(-1, right - 1), ordered.gather(-1, right), share)
