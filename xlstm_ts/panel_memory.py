"""What a fitted forecaster remembers of a panel: which series, up to when, and the memory of each.

Shapes: N series, h steps ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xlstm_ts.covariates import CovariateEncoder
from xlstm_ts.forecasting import SERIES_AT_ONCE
from xlstm_ts.frames import Columns, Panel, future_frame
from xlstm_ts.frequency import Frequency, next_times
from xlstm_ts.labels import shown
from xlstm_ts.memory import Memory, advance, read_series, read_to_forecast
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.rows import Rows, join_series
from xlstm_ts.windows import SeriesPool


@dataclass(frozen=True)
class PanelMemory:
    """Series and what is remembered of them; a value, replaced by each update.

    Attributes:
        ids: (N,) name of each series.
        last_ds: (N,) the last point in time that was read of each.
        frequency: of all series.
        memory: of the N series, in this order.
    """

    ids: np.ndarray
    last_ds: list[Any]
    frequency: Frequency
    memory: Memory

    def position(self, name: Any) -> int:
        """Where a series stands; raises ValueError for one that is not remembered."""
        found = np.flatnonzero(self.ids == name)
        if not len(found):
            raise ValueError(f"no series {shown(name)}: known are {', '.join(map(shown, self.ids[:5]))}, ...")
        return int(found[0])


def to_pool(panel: Panel, encoder: CovariateEncoder) -> SeriesPool:
    """The panel as tensors."""
    return SeriesPool.from_lengths(panel.values, panel.lengths, *encoder.transform(panel.covariates))


def remember(network: ForecastNetwork, panel: Panel, encoder: CovariateEncoder, *, to_go_on: bool) -> PanelMemory:
    """Read whole series.

    Args:
        network: in evaluation mode.
        panel: the series.
        encoder: of their covariates.
        to_go_on: keep what an update or a horizon beyond the trained one needs, at P times the room and time.
    """
    pool = to_pool(panel, encoder)
    read = read_series if to_go_on else read_to_forecast
    # Series of similar length are read together.
    order = torch.argsort(pool.lengths, stable=True)
    memories = [read(network, pool, series) for series in order.split(SERIES_AT_ONCE)]
    memory = concat_memories(memories).series(torch.argsort(order).to(network.margins.device))
    return PanelMemory(panel.ids, panel.last_ds, panel.frequency, memory)


def concat_memories(memories: list[Memory]) -> Memory:
    """The memories of several groups of series as one."""
    if len(memories) == 1:
        return memories[0]
    phases = tuple(torch.cat(states) for states in zip(*(memory.phases for memory in memories), strict=True))
    buffers = join_series([memory.buffer for memory in memories])
    return Memory(buffers, torch.cat([memory.hidden for memory in memories]), phases)


def go_on(network: ForecastNetwork, before: PanelMemory, panel: Panel, encoder: CovariateEncoder) -> PanelMemory:
    """Read the rows that follow in known series, and all rows of new ones.

    Raises:
        ValueError: the rows of a known series do not begin right after its last one.
    """
    at = pd.Index(before.ids).get_indexer(panel.ids)  # -1 where a series is new
    known, fresh = np.flatnonzero(at >= 0), np.flatnonzero(at < 0)
    _check_follow(before, panel, known, at[known])
    pool = to_pool(panel, encoder)
    last_ds = list(before.last_ds)
    memory = before.memory
    if len(known):
        for number, position in zip(known, at[known], strict=True):
            last_ds[position] = panel.last_ds[number]
        memory = _advance_some(network, memory, pool, known, at[known])
    if not len(fresh):
        return PanelMemory(before.ids, last_ds, before.frequency, memory)
    memory = concat_memories([memory, read_series(network, pool, torch.as_tensor(fresh))])
    ids = np.concatenate([before.ids, panel.ids[fresh]])
    return PanelMemory(ids, [*last_ds, *(panel.last_ds[n] for n in fresh)], before.frequency, memory)


def bridge_gaps(before: PanelMemory, rows: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Rows of which each known series begins right after its last one: where it does not, with a missing value."""
    first = rows.sort_values(columns.ds, kind="stable").drop_duplicates(columns.id)
    at = pd.Index(before.ids).get_indexer(first[columns.id])
    first, at = first[at >= 0], at[at >= 0]
    expected = next_times([before.last_ds[position] for position in at], before.frequency)
    late = np.array([due < time for due, time in zip(expected, first[columns.ds], strict=True)], dtype=bool)
    due = pd.Series(expected, dtype=rows[columns.ds].dtype).to_numpy()[late]
    return pd.concat([first[late].assign(**{columns.ds: due, columns.y: np.nan}), rows], ignore_index=True)


def _check_follow(before: PanelMemory, panel: Panel, numbers: np.ndarray, positions: np.ndarray) -> None:
    firsts = panel.times[(panel.stops - panel.lengths)[numbers]].tolist()
    expected = next_times([before.last_ds[position] for position in positions], before.frequency)
    for number, first, due in zip(numbers, firsts, expected, strict=True):
        if first != due:
            raise ValueError(
                f"the new rows of series {shown(panel.ids[number])} must begin at {due}, right after its last one, "
                f"got {first}: leave out what was read already, and insert missing rows with NaN values"
            )


def _advance_some(
    network: ForecastNetwork, memory: Memory, pool: SeriesPool, chosen: np.ndarray, positions: np.ndarray
) -> Memory:
    """Read the ``chosen`` series of a pool into the memories at ``positions``, those of equal length together."""
    lengths = pool.lengths.numpy()[chosen]
    for length in np.unique(lengths).tolist():
        group = lengths == length
        series = torch.as_tensor(chosen[group])
        rows = pool.windows(series, pool.stops[series], before=length).rows.move(network.margins.device)
        at = torch.as_tensor(positions[group], device=network.margins.device)
        # All of the series, in order, are the memory itself: copying it costs more than a step.
        whole = len(at) == len(memory.hidden) and bool((at.diff() == 1).all())
        after, _ = advance(network, memory if whole else memory.series(at), rows)
        memory = after if whole else memory.replaced(at, after)
    return memory


def rows_ahead(
    network: ForecastNetwork, remembered: PanelMemory, horizon: int, encoder: CovariateEncoder, future: Any
) -> tuple[pd.DataFrame, Rows]:
    """The next ``horizon`` rows of every series: their id and time columns, and their covariates.

    Args:
        network: whose device the rows go to.
        remembered: the series.
        horizon: steps ahead.
        encoder: of the covariates.
        future: frame with id, time and known covariates of these rows; None where there are none.

    Raises:
        ValueError: ``future`` lacks a column or a row.
    """
    columns = encoder.columns
    frame = future_frame(remembered.ids, remembered.last_ds, remembered.frequency, horizon, columns)
    count = len(remembered.ids)
    nothing = torch.zeros(count, horizon, dtype=torch.float64)
    covariates = frame
    if columns.known:
        covariates = _join_future(frame, future, encoder)
    numeric, categories = encoder.transform(covariates, absent=(*columns.static, *columns.past))
    fields = (torch.as_tensor(field).unflatten(0, (count, horizon)) for field in (numeric, categories))
    ahead = Rows(nothing, nothing.bool(), *fields).move(network.margins.device)
    return frame, carry_forward(network, remembered.memory, ahead)


def carry_forward(network: ForecastNetwork, memory: Memory, ahead: Rows) -> Rows:
    """Rows ahead whose static and past covariates are those of the last row that was read."""
    kinds = (network.config.static, network.config.known, network.config.past)

    def carried(field: Tensor, last: Tensor, sizes: list[int]) -> Tensor:
        first, stop = sizes[0], sizes[0] + sizes[1]
        last = last[:, -1:].expand(-1, field.shape[1], -1)
        return torch.cat([last[..., :first], field[..., first:stop], last[..., stop:]], -1)

    return ahead._replace(
        numeric=carried(ahead.numeric, memory.buffer.numeric, [kind.numeric for kind in kinds]),
        categories=carried(ahead.categories, memory.buffer.categories, [len(kind.cardinalities) for kind in kinds]),
    )


def _join_future(frame: pd.DataFrame, future: Any, encoder: CovariateEncoder) -> pd.DataFrame:
    columns = encoder.columns
    if not isinstance(future, pd.DataFrame):
        raise ValueError(
            f"the known covariates {list(columns.known)} are needed for the steps ahead: pass them as future, a frame "
            f"with the columns {columns.id!r} and {columns.ds!r}"
        )
    names = [columns.id, columns.ds, *columns.known]
    missing = [name for name in names if name not in future.columns]
    if missing:
        raise ValueError(f"future has no column {missing[0]!r}, only {list(future.columns)}")
    keys = [columns.id, columns.ds]
    twice = future.duplicated(keys).to_numpy()
    if twice.any():
        row = future.iloc[int(twice.argmax())]
        raise ValueError(
            f"future has more than one row for series {shown(row[columns.id])} at {columns.ds} = {row[columns.ds]}: "
            "drop the others"
        )
    try:
        joined = frame.merge(future[names], on=keys, how="left", indicator=True)
    except ValueError as error:
        wanted, got = ([str(each[key].dtype) for key in keys] for each in (frame, future))
        raise ValueError(
            f"the columns {keys} of future must be {wanted}, like those of the series, got {got}"
        ) from error
    absent = (joined["_merge"] != "both").to_numpy()
    if absent.any():
        row = joined.iloc[int(absent.argmax())]
        raise ValueError(
            f"future has no row for series {shown(row[columns.id])} at {columns.ds} = {row[columns.ds]}: "
            "every step ahead needs its known covariates"
        )
    return joined
