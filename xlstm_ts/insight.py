"""What a trained network looks at: how long its units remember, and which past values move a forecast.

Shapes: T rows of a series, P patch length, U units of a block.
"""

import math

import torch
from torch import Tensor

from xlstm_kernels import BlockState, StackState, sLSTMState
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.rows import Rows
from xlstm_ts.windows import SeriesPool

NUDGE = 0.01
LONGEST_CHAIN = 200  # tokens that half-lives are averaged over


@torch.inference_mode()
def half_lives(network: ForecastNetwork, pool: SeriesPool, series: int) -> Tensor:
    """Rows after which half of what a unit remembers is forgotten, by the gates' mean over a series: (blocks, U).

    What a step keeps of a unit's memory c / n follows from its input and forget gates together. It is read off by
    nudging c, which reaches nothing else within the step.
    """
    rows = _chain(network, pool, series)
    inputs, afresh, _ = network.embed(rows, network.config.patch_length)
    first = max(1, inputs.shape[1] - LONGEST_CHAIN)
    _, state = network.stack(inputs[:, :first], None, afresh[:, :first])
    log_kept = torch.zeros(len(state), network.config.embedding_dim, device=inputs.device)
    for token in range(first, inputs.shape[1]):
        step = inputs[:, token : token + 1]
        _, after = network.stack(step, state)
        for block in range(len(state)):
            _, nudged = network.stack(step, _nudge(state, block))
            moved = _remembered(nudged, block) - _remembered(after, block)
            kept = moved / (NUDGE * _remembered(state, block))
            log_kept[block] += kept.clamp(1e-6, 1 - 1e-6).nan_to_num(1e-6).log().flatten()
        state = after
    mean = log_kept / max(inputs.shape[1] - first, 1)
    return network.config.patch_length * -math.log(2) / mean.clamp(max=-1e-6)


def attribution(network: ForecastNetwork, pool: SeriesPool, series: int, *, step: int) -> Tensor:
    """By how much the median forecast moves when a past value of the series moves by one: (T,) float64.

    Args:
        network: in evaluation mode.
        pool: the series.
        series: which one.
        step: of the forecast, from 1; through look-back, scale and carried state alike.
    """
    rows = _chain(network, pool, series)
    values = rows.values.clone().requires_grad_()
    encoded, _ = network.encode(rows._replace(values=values))
    encoded = encoded.last(1)
    horizon = network.config.horizon
    index = torch.tensor([series])
    ahead = pool.windows(index, pool.stops[index], before=0, after=horizon).rows.move(values.device)
    quantiles = network.quantiles(network.decode(encoded, network.known_ahead(ahead)[:, None]), encoded.tokens.scale)
    median = encoded.tokens.scale.restore(quantiles[..., quantiles.shape[-1] // 2])
    (gradient,) = torch.autograd.grad(median[0, 0, step - 1], values)
    return gradient[0, -int(pool.lengths[series]) :].detach().cpu()


def _chain(network: ForecastNetwork, pool: SeriesPool, series: int) -> Rows:
    """The rows of the tokens up to the end of a series."""
    sizes, index = network.config, torch.tensor([series])
    tokens = -(-int(pool.lengths[series]) // sizes.patch_length)
    before = sizes.reach + (tokens - 1) * sizes.patch_length
    return pool.windows(index, pool.stops[index], before=before).rows.move(network.margins.device)


def _nudge(state: StackState, block: int) -> StackState:
    conv, cell = state[block]
    assert isinstance(cell, sLSTMState)
    return (*state[:block], BlockState(conv, cell._replace(c=cell.c * (1 + NUDGE))), *state[block + 1 :])


def _remembered(state: StackState, block: int) -> Tensor:
    cell = state[block].cell
    return cell.c / cell.n
