"""The forms in which series come, brought to the one long form: wide frames, a Series, arrays."""

from typing import Any

import numpy as np
import pandas as pd

from xlstm_ts.frames import Columns
from xlstm_ts.labels import shown


def to_long(data: Any, columns: Columns) -> pd.DataFrame:
    """A long frame of the series in ``data``.

    A frame with the id column is in long form already, and so is one that has the column of values beside times or
    covariates. Any other is wide: one column a series, times in the index or the time column. A Series is one series,
    times in its index. An array is (T,) or (N, T), a list holds arrays of any lengths; times are then 0, 1, 2, ... In
    wide forms, missing values in front of a series are not part of it.

    Raises:
        TypeError: ``data`` is of another type.
        ValueError: an array has other dimensions, or a column of a wide frame is no number or holds nothing.
    """
    if isinstance(data, pd.DataFrame | pd.Series):
        _check_labels(data)
    if isinstance(data, pd.Series):
        name = columns.y if data.name is None else data.name
        return _melt(data.to_frame(name), columns)
    if isinstance(data, pd.DataFrame):
        present = set(data.columns)
        beside = {columns.ds, *columns.covariates}
        if columns.id in present or (columns.y in present and beside & present) or not present:
            return data
        return _melt(data.set_index(columns.ds) if columns.ds in data.columns else data, columns)
    if isinstance(data, np.ndarray | list | tuple):
        return _from_arrays(data, columns)
    if hasattr(data, "toarray"):
        raise TypeError("sparse data is not supported: pass data.toarray(), one series a row")
    raise TypeError(f"expected a pandas DataFrame or Series, or an array (N, T), got {type(data).__name__}")


def _check_labels(data: pd.DataFrame | pd.Series) -> None:
    """Raise ValueError where rows or columns have labels of several levels."""
    if isinstance(data.index, pd.MultiIndex):
        raise ValueError(f"the index has the levels {list(data.index.names)}: make them columns with reset_index()")
    if isinstance(data, pd.DataFrame) and isinstance(data.columns, pd.MultiIndex):
        raise ValueError(f"the columns have {data.columns.nlevels} levels: give each series a single name")


def _melt(wide: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    for name, dtype in zip(wide.columns, wide.dtypes, strict=True):
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype):
            raise ValueError(
                f"column {shown(name)} of a wide frame must be numeric, got dtype {dtype}: convert it, "
                f"or pass a long frame with the columns {columns.id!r}, {columns.ds!r} and {columns.y!r}"
            )
    values = wide.to_numpy(dtype=np.float64, na_value=np.nan).T  # (N, T)
    begun = np.logical_or.accumulate(~np.isnan(values), axis=1)
    empty = ~begun.any(1)
    if empty.any():
        raise ValueError(f"column {shown(wide.columns[int(empty.argmax())])} of a wide frame holds no value: drop it")
    series, steps = begun.nonzero()
    return pd.DataFrame(
        {columns.id: wide.columns.take(series), columns.ds: wide.index.take(steps), columns.y: values[begun]}
    )


def _from_arrays(data: Any, columns: Columns) -> pd.DataFrame:
    if isinstance(data, np.ndarray):
        if data.ndim not in (1, 2):
            raise ValueError(f"an array of series must be (T,) or (N, T), got {data.shape}")
        rows = list(np.atleast_2d(data))
    else:
        rows = [np.asarray(row) for row in data]
        if all(row.ndim == 0 for row in rows):
            rows = [np.asarray(data)]
        if any(row.ndim != 1 for row in rows):
            raise ValueError("a list of series must hold arrays (T,)")
    parts = []
    for number, row in enumerate(rows):
        if np.iscomplexobj(row):
            raise ValueError(f"Complex data not supported: series {number} is {row.dtype}")
        try:
            values = row.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"series {number} holds values that are no numbers: {error}") from error
        begins = int(np.isfinite(values).argmax()) if np.isfinite(values).any() else 0
        steps = np.arange(begins, len(values))
        parts.append(pd.DataFrame({columns.id: number, columns.ds: steps, columns.y: values[begins:]}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[columns.id, columns.ds, columns.y])
