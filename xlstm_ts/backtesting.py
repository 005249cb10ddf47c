"""Forecasts from many origins of known series in one pass: the state is read once, and forecast from on the way.

Shapes: M origins, S tokens, H horizon, Q quantiles.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from xlstm_ts.memory import VALUES_AT_ONCE
from xlstm_ts.network import Encoded, ForecastNetwork
from xlstm_ts.scaling import Scale
from xlstm_ts.windows import SeriesPool

# Numbers in a forecast's widest layer, times horizon, times origins: bounds the room that decoding takes.
DECODED_AT_ONCE = 2**24


def tail_window_origins(pool: SeriesPool, *, n_windows: int | None, step: int, horizon: int) -> tuple[Tensor, Tensor]:
    """The last ``n_windows`` origins of each series that have all ``horizon`` values after them, ``step`` apart.

    Returns:
        Series and position in the pool of each, both (M,), oldest first within a series; every origin needs a row
        before it. None for ``n_windows`` is all of them.

    Raises:
        ValueError: no series has an origin.
    """
    if int(pool.lengths.max()) <= horizon:
        raise ValueError(
            f"no series has a row before the {horizon} steps that are forecast: the longest has "
            f"{int(pool.lengths.max())} rows"
        )
    last = pool.stops - horizon
    possible = ((last - pool.starts - 1).div(step, rounding_mode="floor") + 1).clamp(min=0)
    counts = possible if n_windows is None else possible.clamp(max=n_windows)
    series = torch.repeat_interleave(torch.arange(len(counts)), counts)
    within = torch.arange(len(series)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return series, last[series] - (counts[series] - 1 - within) * step


def backtest_quantiles(
    network: ForecastNetwork, pool: SeriesPool, series: Tensor, origins: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of some origins (m,), and the quantiles (m, H, Q) float64 in units of the data of what follows each."""
    for index, quantiles, scale in backtest_normalised(network, pool, series, origins):
        yield index, scale.restore(quantiles[:, None].flatten(2)).reshape(quantiles.shape).cpu()


@torch.inference_mode()
def backtest_normalised(
    network: ForecastNetwork, pool: SeriesPool, series: Tensor, origins: Tensor
) -> Iterator[tuple[Tensor, Tensor, Scale]]:
    """Quantiles of the ``horizon`` values after each origin.

    Origins a multiple of the patch length apart lie on one chain of states, which is read once.

    Args:
        network: in evaluation mode.
        pool: the series; covariates after an origin that lie in the pool are used if they are known ahead.
        series: (M,) the series of each origin.
        origins: (M,) positions in the pool: the first one after what is known.

    Yields:
        Indices of some origins (m,), their quantiles (m, H, Q) in units of their scales, and these scales.
    """
    patch_length = network.config.patch_length
    chain = series * patch_length + origins % patch_length
    _, chain = chain.unique(return_inverse=True)
    order = torch.argsort(chain * (int(pool.stops.max()) + 1) + origins, stable=True)
    sizes = torch.bincount(chain)
    chains = order.split(sizes.tolist())
    newest = order[sizes.cumsum(0) - 1]  # of each chain
    longest = int((origins[newest] - pool.starts[series[newest]]).max())
    tokens = -(-longest // patch_length)
    at_once = max(1, VALUES_AT_ONCE // (tokens * network.config.reach))
    for start in range(0, len(chains), at_once):
        yield from _read_chains(network, pool, series, origins, list(chains[start : start + at_once]))


def _read_chains(
    network: ForecastNetwork, pool: SeriesPool, series: Tensor, origins: Tensor, chains: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Scale]]:
    """Read each chain up to its last origin, and forecast at those tokens that are origins."""
    sizes, device = network.config, network.margins.device
    newest = torch.stack([members[-1] for members in chains])
    length = int((origins[newest] - pool.starts[series[newest]]).max())
    before = sizes.reach + (-(-length // sizes.patch_length) - 1) * sizes.patch_length
    rows = pool.windows(series[newest], origins[newest], before=before).rows.move(device)
    encoded, _ = network.encode(rows)
    members = torch.cat(chains)
    row = torch.repeat_interleave(torch.arange(len(chains)), torch.tensor([len(chain) for chain in chains]))
    back = (origins[newest][row] - origins[members]) // sizes.patch_length
    token = encoded.hidden.shape[1] - 1 - back
    width = sizes.decoder_dim + sizes.reach // sizes.horizon + sizes.known.channels * 16
    size = max(1, DECODED_AT_ONCE // (sizes.horizon * width))
    for part in torch.arange(len(members)).split(size):
        chosen = pick_tokens(encoded, row[part].to(device), token[part].to(device))
        index = members[part]
        ahead = pool.windows(series[index], origins[index], before=0, after=sizes.horizon).rows.move(device)
        scale = chosen.tokens.scale
        quantiles = network.quantiles(network.decode(chosen, network.known_ahead(ahead)[:, None]), scale)
        yield index, quantiles[:, 0], scale


def pick_tokens(encoded: Encoded, row: Tensor, token: Tensor) -> Encoded:
    """The given tokens (m,) of the given rows (m,), each as a row of its own."""

    def pick(field: Tensor) -> Tensor:
        return field[row, token].unsqueeze(1)

    hidden, tokens, behind = encoded
    scale = type(tokens.scale)(*map(pick, tokens.scale))
    return Encoded(pick(hidden), type(tokens)(pick(tokens.history), pick(tokens.seen), scale), pick(behind))
