"""Long frames in and out: checks that name the series, the column and the row, and the panel they become."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xlstm_ts.frequency import (
    Frequency,
    first_deviation,
    future_axis,
    infer_frequency,
    is_time,
    likely_frequency,
    regular_axis,
    steps_between,
)


@dataclass(frozen=True)
class Columns:
    """Names of a long frame's columns: which series, when, how much, and covariates.

    Attributes:
        id, ds, y: the series, the point in time, the value.
        static: covariates that never change within a series.
        known: covariates whose values ahead are known at forecasting, as holidays are.
        past: covariates that are known up to now.
    """

    id: str = "unique_id"
    ds: str = "ds"
    y: str = "y"
    static: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()

    @property
    def covariates(self) -> tuple[str, ...]:
        """All covariates: static, known, past."""
        return (*self.static, *self.known, *self.past)


def shown(label: Any) -> str:
    """A series' name or a row's label as its user wrote it: 'a' and 7, not np.int64(7)."""
    return repr(label.item() if isinstance(label, np.generic) else label)


@dataclass(frozen=True)
class Panel:
    """The checked rows of many series, laid end to end.

    Attributes:
        ids: (N,) name of each series, in the frame's order.
        times: (T,) points in time, oldest first within a series.
        values: (T,) float64, NaN where missing.
        covariates: (T) rows, one column for each covariate, as the frame had them.
        lengths: (N,) int64 rows of each series.
        last_ds: (N,) the last point in time of each series.
        frequency: of all series.
    """

    ids: np.ndarray
    times: pd.Index
    values: np.ndarray
    covariates: pd.DataFrame
    lengths: np.ndarray
    last_ds: list[Any]
    frequency: Frequency

    @property
    def stops(self) -> np.ndarray:
        """(N,) one past the last row of each series."""
        return np.cumsum(self.lengths)

    def position(self, name: Any) -> int:
        """Where a series stands, the first one's place for None; raises ValueError for one that is not there."""
        found = np.flatnonzero(self.ids == name)
        if name is not None and not len(found):
            raise ValueError(f"no series {shown(name)}: there are {[*map(shown, self.ids[:5])]}, ...")
        return 0 if name is None else int(found[0])

    def require_length(self, least: int, purpose: str) -> None:
        """Raise ValueError naming the first series with fewer than ``least`` values."""
        short = np.flatnonzero(self.lengths < least)
        if len(short):
            raise ValueError(
                f"{purpose} needs at least {least} values of every series, got {self.lengths[short[0]]} of series "
                f"{shown(self.ids[short[0]])}: drop short series, or choose a smaller season_length"
            )

    def index_frame(self, columns: Columns) -> pd.DataFrame:
        """The id and time columns of all rows."""
        return pd.DataFrame({columns.id: np.repeat(self.ids, self.lengths), columns.ds: self.times})


def future_frame(
    ids: np.ndarray, last_ds: Sequence[Any], frequency: Frequency, horizon: int, columns: Columns
) -> pd.DataFrame:
    """The id and time columns of the next ``horizon`` rows of every series."""
    axes = {last: future_axis(last, horizon, frequency) for last in set(last_ds)}
    future = axes[last_ds[0]].append([axes[last] for last in last_ds[1:]])
    return pd.DataFrame({columns.id: np.repeat(ids, horizon), columns.ds: future})


def read_panel(
    frame: pd.DataFrame, columns: Columns, *, frequency: Frequency | None = None, fill_gaps: bool = False
) -> Panel:
    """Check a long frame and turn it into a panel; rows may come in any order, values may be missing (NaN).

    Args:
        frame: one row for every series and point in time.
        columns: names of its columns.
        frequency: what every series must have; None infers it.
        fill_gaps: insert the rows that a series lacks, with a missing value and the last row's covariates, instead of
            raising.

    Raises:
        TypeError: ``frame`` is no DataFrame.
        ValueError: a column is missing; a value is infinite or no number; a time is missing or neither integer,
            timestamp nor period; a point in time occurs twice; series disagree in frequency; a series has a gap; a
            static covariate changes; no rows.
    """
    frame = _checked_columns(frame, columns)
    order = pd.DataFrame({"series": pd.factorize(frame[columns.id])[0], "ds": frame[columns.ds]}, index=frame.index)
    order = order.reset_index(drop=True).sort_values(["series", "ds"], kind="stable")
    frame = frame.iloc[order.index.to_numpy()]
    _check_duplicates(frame, columns)
    lengths = np.bincount(order["series"])
    stops = np.cumsum(lengths)
    ids = frame[columns.id].to_numpy()[stops - lengths]
    axes = [frame[columns.ds].iloc[stop - length : stop] for stop, length in zip(stops, lengths, strict=True)]
    frequency = _common_frequency(ids, axes, frequency)
    if fill_gaps:
        frame, lengths = _without_gaps(frame, axes, frequency, columns)
    else:
        _check_regular(ids, axes, frequency)
    stops = np.cumsum(lengths)
    _check_static(frame, lengths, columns)
    times = pd.Index(frame[columns.ds])
    values = frame[columns.y].to_numpy(dtype=np.float64, na_value=np.nan)
    covariates = frame[list(columns.covariates)].reset_index(drop=True)
    return Panel(ids, times, values, covariates, lengths, [times[stop - 1] for stop in stops], frequency)


def _checked_columns(frame: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """The named columns of a frame, each of a usable type."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"expected a pandas DataFrame in long form, got {type(frame).__name__}")
    names = [columns.id, columns.ds, columns.y, *columns.covariates]
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ValueError(
            f"the frame has no column {missing[0]!r}, only {list(frame.columns)}: "
            "rename it, or name yours with id_col, ds_col and y_col"
        )
    if frame.empty:
        raise ValueError("the frame is empty: pass at least one series")
    frame = frame[names]
    check_ids_and_times(frame, columns)
    _check_target(frame, columns)
    return frame


def check_ids_and_times(frame: pd.DataFrame, columns: Columns) -> None:
    """Raise ValueError for a name or a time that is missing, or times of an unusable type."""
    for name in (columns.id, columns.ds):
        absent = frame[name].isna().to_numpy()
        if absent.any():
            row = frame.index[int(absent.argmax())]
            raise ValueError(f"column {name!r} is missing in row {shown(row)}: drop or fill that row")
    if not is_time(frame[columns.ds]):
        raise ValueError(
            f"column {columns.ds!r} must hold integers or timestamps, got dtype {frame[columns.ds].dtype}: "
            "convert it with pd.to_datetime"
        )


def _check_target(frame: pd.DataFrame, columns: Columns) -> None:
    target = frame[columns.y]
    if not pd.api.types.is_numeric_dtype(target) or pd.api.types.is_bool_dtype(target):
        position = int(pd.to_numeric(target, errors="coerce").isna().to_numpy().argmax())
        raise ValueError(
            f"column {columns.y!r} must be numeric, got dtype {target.dtype} with {target.iloc[position]!r} in row "
            f"{shown(frame.index[position])}: convert it with pd.to_numeric"
        )
    bad = np.isinf(target.to_numpy(dtype=np.float64, na_value=np.nan))
    if bad.any():
        position = int(bad.argmax())
        row = frame.iloc[position]
        raise ValueError(
            f"column {columns.y!r} of series {shown(row[columns.id])} is {row[columns.y]} at {columns.ds} = "
            f"{row[columns.ds]} (row {shown(frame.index[position])}): make it NaN if it is missing"
        )


def _check_duplicates(frame: pd.DataFrame, columns: Columns) -> None:
    repeated = frame.duplicated([columns.id, columns.ds]).to_numpy()
    if repeated.any():
        position = int(repeated.argmax())
        row = frame.iloc[position]
        raise ValueError(
            f"series {shown(row[columns.id])} has more than one row at {columns.ds} = {row[columns.ds]} "
            f"(row {shown(frame.index[position])}): drop or aggregate duplicates"
        )


def _check_static(frame: pd.DataFrame, lengths: np.ndarray, columns: Columns) -> None:
    """Raise ValueError where a static covariate changes within a series."""
    last = np.repeat(np.cumsum(lengths) - 1, lengths)
    for name in columns.static:
        codes = pd.factorize(frame[name])[0]
        differs = codes != codes[last]
        if differs.any():
            row = frame.iloc[int(differs.argmax())]
            raise ValueError(
                f"static covariate {name!r} of series {shown(row[columns.id])} changes at {columns.ds} = "
                f"{row[columns.ds]}: list it among the known or past covariates"
            )


def _common_frequency(ids: np.ndarray, axes: Sequence[pd.Series], frequency: Frequency | None) -> Frequency:
    """The frequency that all series should keep: the given one, or that of the first series which shows one."""
    guesses = (guess(axis) for guess in (infer_frequency, likely_frequency) for axis in axes)
    known = frequency or next((guessed for guessed in guesses if guessed is not None), None)
    if known is None:
        raise ValueError(
            f"the frequency cannot be inferred: series {shown(ids[0])} has too few or irregular points in time: "
            "fill its gaps, pass series with at least 3 regular points, or name it with freq"
        )
    return known


def _check_regular(ids: np.ndarray, axes: Sequence[pd.Series], frequency: Frequency) -> None:
    for name, axis in zip(ids, axes, strict=True):
        position = first_deviation(axis, frequency)
        if position is not None:
            raise ValueError(_deviation_message(name, axis, position, frequency))


def _without_gaps(
    frame: pd.DataFrame, axes: Sequence[pd.Series], frequency: Frequency, columns: Columns
) -> tuple[pd.DataFrame, np.ndarray]:
    """The frame with the rows that its series lack, and the new lengths."""
    parts = []
    start = 0
    for axis in axes:
        rows = frame.iloc[start : start + len(axis)]
        start += len(axis)
        if first_deviation(axis, frequency) is not None:
            whole = regular_axis(axis.iloc[0], steps_between(axis.iloc[0], axis.iloc[-1], frequency) + 1, frequency)
            off = ~pd.Index(axis).isin(whole)
            if off.any():
                name, position = rows[columns.id].iloc[0], int(off.argmax())
                raise ValueError(_deviation_message(name, axis, position, frequency))
            rows = rows.set_index(columns.ds).reindex(whole).rename_axis(columns.ds).reset_index()
            filled = [columns.id, *columns.covariates]
            rows[filled] = rows[filled].ffill()
        parts.append(rows)
    return pd.concat(parts, ignore_index=True), np.array([len(rows) for rows in parts])


def _deviation_message(name: Any, axis: pd.Series, position: int, frequency: Frequency) -> str:
    own = infer_frequency(axis)
    if own is not None and own != frequency:
        return (
            f"series {shown(name)} has frequency {own!r} where {frequency!r} is expected: "
            "resample it, or forecast series of different frequencies separately"
        )
    expected = regular_axis(axis.iloc[0], len(axis), frequency)[position]
    return (
        f"series {shown(name)} has a gap or leaves the frequency {frequency!r}: expected {expected} after "
        f"{axis.iloc[max(position - 1, 0)]}, got {axis.iloc[position]} (row {shown(axis.index[position])}): "
        "insert the missing rows with NaN values, or pass fill_gaps=True"
    )
