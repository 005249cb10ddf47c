"""Long frames in and out: checks that name the series, the column and the row, and the panel they become."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xlstm_ts.axes import Axes
from xlstm_ts.frequency import Frequency, deviations, future_axis, is_time, ordinals
from xlstm_ts.labels import shown

LARGEST = 1e100  # squares of deviations must stay finite


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
            raise ValueError(f"no series {shown(name)}: there are {', '.join(map(shown, self.ids[:5]))}, ...")
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
    _check_columns(frame, columns)
    frame, series, ids = _sorted(frame, columns)
    times = pd.Index(frame[columns.ds])
    _check_duplicates(frame, series, times, columns)
    lengths = np.bincount(series)
    axes = Axes(ids, times, lengths, frame.index)
    frequency = axes.common_frequency() if frequency is None else frequency
    deviates = deviations(times, lengths, frequency)
    inserted = np.zeros(len(frame), dtype=bool)
    if deviates.any():
        if not fill_gaps or deviates.all():  # times of another kind have no gaps that could be filled
            raise ValueError(axes.deviation_message(int(deviates.argmax()), frequency))
        times, lengths, inserted = axes.without_gaps(series[deviates], frequency)
        frame = frame.iloc[np.cumsum(~inserted) - 1]  # what is inserted repeats the row before
    _check_static(frame, lengths, columns)
    values = frame[columns.y].to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    values[inserted] = np.nan
    rows = pd.RangeIndex(len(frame))
    covariates = pd.DataFrame({name: frame[name].array for name in columns.covariates}, index=rows)
    return Panel(ids, times, values, covariates, lengths, times[np.cumsum(lengths) - 1].tolist(), frequency)


def _check_columns(frame: pd.DataFrame, columns: Columns) -> None:
    """Raise TypeError or ValueError unless the named columns are there, each of a usable type."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"expected a pandas DataFrame in long form, got {type(frame).__name__}")
    present = frame.columns.tolist()
    for name in (columns.id, columns.ds, columns.y, *columns.covariates):
        if name not in present:
            raise ValueError(f"the frame has no column {name!r}, only {present}: {_cure(name, frame, columns)}")
        if present.count(name) > 1:
            raise ValueError(f"the frame has more than one column {name!r}: drop or rename the others")
    if frame.empty:
        raise ValueError("the frame is empty: pass at least one series")
    check_ids_and_times(frame, columns)
    _check_target(frame, columns)


def _cure(name: str, frame: pd.DataFrame, columns: Columns) -> str:
    """What helps a frame that lacks the column ``name``."""
    if name in frame.index.names:
        return "it is in the index, call reset_index()"
    if name == columns.id and columns.ds in frame.columns:
        return f"rename it, name yours with id_col, or a single series with frame.assign({name}='...')"
    if name in columns.covariates:
        return "add it, or leave it out of static, known and past"
    return "rename it, or name yours with id_col, ds_col and y_col"


def _sorted(frame: pd.DataFrame, columns: Columns) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows series by series, oldest first, the number of each one's series (T,), and the series' names (N,)."""
    series, names = pd.factorize(frame[columns.id])
    time = ordinals(pd.Index(frame[columns.ds]))
    step = np.diff(series)
    if not ((step > 0) | ((step == 0) & (np.diff(time) >= 0))).all():
        order = np.lexsort((time, series))
        frame, series = frame.iloc[order], series[order]
    return frame, series, pd.Index(names).to_numpy()


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
    bad = np.abs(target.to_numpy(dtype=np.float64, na_value=np.nan)) > LARGEST
    if bad.any():
        position = int(bad.argmax())
        row = frame.iloc[position]
        raise ValueError(
            f"column {columns.y!r} of series {shown(row[columns.id])} is {row[columns.y]} at {columns.ds} = "
            f"{row[columns.ds]} (row {shown(frame.index[position])}): make it NaN if it is missing, "
            f"and values less than {LARGEST:g}"
        )


def _check_duplicates(frame: pd.DataFrame, series: np.ndarray, times: pd.Index, columns: Columns) -> None:
    repeated = (np.diff(series) == 0) & (np.diff(ordinals(times)) == 0)
    if repeated.any():
        position = 1 + int(repeated.argmax())
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
