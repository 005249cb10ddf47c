"""Cross-validation of panels: each fold trains on the past of every series and tests on what follows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from xlstm_ts.parameters import check_count


class PanelSplit:
    """Folds for ``cross_val_score`` and ``GridSearchCV``: of every series, the last rows in ``n_splits`` steps.

    Args:
        n_splits: how many folds, the oldest first.
        horizon: rows of each series that a fold tests.
        step: rows between the ends of two folds; None is ``horizon``.
        id_col, ds_col: names of the frame's columns.

    >>> GridSearchCV(forecaster, {"dropout": [0.0, 0.2]}, cv=PanelSplit(n_splits=3, horizon=24)).fit(df)
    """

    def __init__(
        self,
        n_splits: int = 3,
        *,
        horizon: int,
        step: int | None = None,
        id_col: str = "unique_id",
        ds_col: str = "ds",
    ) -> None:
        for name, value in (("n_splits", n_splits), ("horizon", horizon), ("step", step or horizon)):
            check_count(name, value, least=1)
        self.n_splits, self.horizon, self.step = n_splits, horizon, step
        self.id_col, self.ds_col = id_col, ds_col

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """How many folds there are."""
        return self.n_splits

    def split(self, X: pd.DataFrame, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row positions of training and test rows; series too short for a fold are left out of it.

        Raises:
            ValueError: every series is too short for a fold.
        """
        step = self.step or self.horizon
        order = X.reset_index(drop=True).sort_values([self.id_col, self.ds_col], kind="stable")
        from_end = order.groupby(self.id_col, sort=False).cumcount(ascending=False)
        lengths = order.groupby(self.id_col, sort=False)[self.ds_col].transform("size")
        for fold in reversed(range(self.n_splits)):
            begins = fold * step + self.horizon
            long_enough = lengths > begins
            if not long_enough.any():
                raise ValueError(
                    f"no series is longer than {begins} rows, which {self.n_splits} folds of horizon "
                    f"{self.horizon} need: use fewer splits or a shorter horizon"
                )
            train = long_enough & (from_end >= begins)
            test = long_enough & (from_end < begins) & (from_end >= fold * step)
            yield order.index[train].to_numpy(), order.index[test].to_numpy()
