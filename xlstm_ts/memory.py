"""The memory of a forecaster as a value: what is read once, advanced by new rows, and forecast from.

The network's state steps a whole patch at a time: the state at row t continues that at row t - P, as in a dilated
recurrence. A memory holds the states at the last P rows, so that every new row is one step of one of them, and every
row is an origin that forecasts from a whole patch. Reading a history at once, row by row, or in a training window is
the same function of the same rows.

Shapes: N series, n new rows, P patch length, R reach, D width of what is decoded, F numbers of a state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from xlstm_ts.network import Encoded, ForecastNetwork
from xlstm_ts.rows import Rows, join_steps, unseen_rows
from xlstm_ts.windows import SeriesPool

# Values of look-backs that are laid out at once: bounds the room that reading a history takes.
VALUES_AT_ONCE = 2**24


class Memory(NamedTuple):
    """What a forecaster remembers of N series: all that it needs to forecast, and to go on.

    Attributes:
        buffer: the last ``reach`` rows.
        hidden: what the network made of the newest row's token and all before it (N, D).
        phases: the stack's states at the last P rows, oldest first, packed (N, F) each; none in a memory that was
            read to forecast alone.
    """

    buffer: Rows
    hidden: Tensor
    phases: tuple[Tensor, ...]

    def series(self, index: Tensor) -> "Memory":
        """Some of the series, or some of them repeatedly."""
        phases = (state[index] for state in self.phases)
        return Memory(self.buffer.series(index), self.hidden[index], tuple(phases))

    def replaced(self, index: Tensor, other: "Memory") -> "Memory":
        """A memory that is ``other`` of the given series."""

        def mixed(mine: Tensor, others: Tensor) -> Tensor:
            return mine.index_copy(0, index, others)

        buffer = Rows(*map(mixed, self.buffer, other.buffer))
        return Memory(buffer, mixed(self.hidden, other.hidden), tuple(map(mixed, self.phases, other.phases)))


def empty_memory(network: ForecastNetwork, batch_size: int) -> Memory:
    """The memory before any row."""
    sizes = network.config
    numeric = sizes.static.numeric + sizes.known.numeric + sizes.past.numeric
    categories = sum(len(kind.cardinalities) for kind in (sizes.static, sizes.known, sizes.past))
    device = network.margins.device
    buffer = unseen_rows(batch_size, sizes.reach, numeric=numeric, categories=categories).move(device)
    width = sizes.embedding_dim + sizes.static.channels
    phases = (network.stepping.initial_state(batch_size),) * sizes.patch_length
    return Memory(buffer, torch.zeros(batch_size, width, device=device), phases)


@torch.inference_mode()
def advance(network: ForecastNetwork, memory: Memory, rows: Rows) -> tuple[Memory, Encoded]:
    """Read new rows.

    Args:
        network: in evaluation mode.
        memory: of N series; it is not changed.
        rows: the n next steps of the same series.

    Returns:
        The memory after them, and what forecasts after each of them are made from, n tokens.
    """
    reach, count = network.config.reach, rows.values.shape[1]
    rows = join_steps([memory.buffer, rows])
    inputs, afresh, seen = network.embed(rows.steps(slice(1, None)), stride=1)  # the first token ends with a new row
    hidden, phases = step_phases(network, memory.phases, inputs, afresh)
    encoded = seen._replace(hidden=torch.cat([hidden, seen.hidden], -1))
    return Memory(rows.steps(slice(count, count + reach)), encoded.hidden[:, -1], phases), encoded


def step_phases(
    network: ForecastNetwork, phases: tuple[Tensor, ...], inputs: Tensor, afresh: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of the oldest state for every input (N, n, D): outputs (N, n, D), and the states at the last P rows."""
    first = inputs.shape[1] % len(phases)
    if not first:
        return _step_in_turn(network, phases, inputs, afresh)
    # What is no whole round of all states comes first: a single step of the oldest ones.
    hidden, after = _step_in_turn(network, phases[:first], inputs[:, :first], afresh[:, :first])
    phases = (*phases[first:], *after)
    if inputs.shape[1] == first:
        return hidden, phases
    rest, phases = _step_in_turn(network, phases, inputs[:, first:], afresh[:, first:])
    return torch.cat([hidden, rest], 1), phases


def _step_in_turn(
    network: ForecastNetwork, states: tuple[Tensor, ...], inputs: Tensor, afresh: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Inputs (N, rounds * len(states), D) that the states read in turn, as one batch of (states x series)."""
    size, series = len(states), len(inputs)

    def to_turns(field: Tensor) -> Tensor:
        return field.unflatten(1, (-1, size)).movedim(2, 0).flatten(0, 1)

    hidden, after = network.stepping(to_turns(inputs), torch.cat(states), to_turns(afresh))
    outputs = hidden.unflatten(0, (size, series)).movedim(0, 2).flatten(1, 2)
    # Copies: a view would keep the states of all turns as long as one of them lives.
    return outputs, tuple(part.clone() for part in after.split(series))


def read_series(network: ForecastNetwork, pool: SeriesPool, series: Tensor) -> Memory:
    """The memory after all of the given series (B,), ready to go on."""
    memory = empty_memory(network, len(series))
    # Series end together: shorter ones begin with rows of which nothing is seen, which leave no trace.
    longest = int(pool.lengths[series].max())
    at_once = max(1, VALUES_AT_ONCE // (len(series) * network.config.reach))
    for start in range(0, longest, at_once):
        size = min(at_once, longest - start)
        rows = pool.windows(series, pool.stops[series] - longest + start + size, before=size).rows
        memory, _ = advance(network, memory, rows.move(network.margins.device))
    return memory


@torch.inference_mode()
def read_to_forecast(network: ForecastNetwork, pool: SeriesPool, series: Tensor) -> Memory:
    """The memory after all of the given series (B,), of the newest state alone: it forecasts, but cannot go on."""
    sizes = network.config
    tokens = -(-int(pool.lengths[series].max()) // sizes.patch_length)
    before = sizes.reach + (max(tokens, 1) - 1) * sizes.patch_length
    rows = pool.windows(series, pool.stops[series], before=before).rows.move(network.margins.device)
    encoded, _ = network.encode(rows)
    return Memory(rows.steps(slice(before - sizes.reach, before)), encoded.hidden[:, -1], phases=())


def newest(network: ForecastNetwork, memory: Memory) -> Encoded:
    """What a memory forecasts from, one token a series."""
    _, _, seen = network.embed(memory.buffer, stride=1)
    return seen._replace(hidden=memory.hidden[:, None])
