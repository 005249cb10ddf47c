"""Covariates in: standardised numbers and codes of categories, as the frames that were fitted had them."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xlstm_ts.embeddings import CovariateSizes
from xlstm_ts.frames import Columns
from xlstm_ts.labels import shown

UNKNOWN = 0  # the code of categories that were not seen in fit


@dataclass(frozen=True)
class CovariateEncoder:
    """How covariates become numbers; learned from the rows that were fitted.

    Attributes:
        columns: which covariates there are, and of which kind.
        moments: mean and standard deviation of each numeric covariate.
        codes: for each categorical covariate, the code of each category, from 1.
    """

    columns: Columns
    moments: dict[str, tuple[float, float]]
    codes: dict[str, dict[Any, int]]

    @classmethod
    def fit(cls, frame: pd.DataFrame, columns: Columns) -> "CovariateEncoder":
        """Learn from a frame with all covariates; what is neither number nor boolean is a category."""
        moments, codes = {}, {}
        for name in columns.covariates:
            if pd.api.types.is_datetime64_any_dtype(frame[name]):
                raise ValueError(f"covariate {name!r} holds times: make it numbers, such as the day of the week")
            if pd.api.types.is_numeric_dtype(frame[name]):
                numbers = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
                numbers = numbers[np.isfinite(numbers)]
                deviation = float(numbers.std()) if len(numbers) else 0.0
                moments[name] = (float(numbers.mean()) if len(numbers) else 0.0, deviation or 1.0)
            else:
                seen = sorted(frame[name].dropna().unique().tolist(), key=str)
                codes[name] = {category: code for code, category in enumerate(seen, start=UNKNOWN + 1)}
        return cls(columns, moments, codes)

    def sizes(self, names: tuple[str, ...]) -> CovariateSizes:
        """How many of these covariates are numbers, and how many codes the others have."""
        return CovariateSizes(
            numeric=sum(name in self.moments for name in names),
            cardinalities=tuple(1 + len(self.codes[name]) for name in names if name in self.codes),
        )

    def transform(self, frame: pd.DataFrame, *, absent: tuple[str, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (T, C) float32, 0 where missing, and codes (T, K) int64, in the order of the columns.

        Args:
            frame: rows with all covariates.
            absent: covariates that the frame need not have: those known up to now, for rows ahead.

        Raises:
            ValueError: a column is no number that was one in fit.
        """
        numeric = [self._numbers(frame, name, absent) for name in self.columns.covariates if name in self.moments]
        codes = [self._codes(frame, name, absent) for name in self.columns.covariates if name in self.codes]
        empty = np.zeros((len(frame), 0))
        return (
            np.column_stack([empty, *numeric]).astype(np.float32),
            np.column_stack([empty, *codes]).astype(np.int64),
        )

    def _numbers(self, frame: pd.DataFrame, name: str, absent: tuple[str, ...]) -> np.ndarray:
        if name in absent:
            return np.zeros(len(frame))
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise ValueError(f"covariate {name!r} was numeric in fit, got dtype {frame[name].dtype}: convert it")
        mean, deviation = self.moments[name]
        numbers = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(numbers).any():
            raise ValueError(f"covariate {name!r} is infinite in row {np.isinf(numbers).argmax()}: make it NaN")
        return np.nan_to_num((numbers - mean) / deviation)

    def _codes(self, frame: pd.DataFrame, name: str, absent: tuple[str, ...]) -> np.ndarray:
        if name in absent:
            return np.zeros(len(frame))
        codes = frame[name].map(self.codes[name]).to_numpy(dtype=np.float64, na_value=np.nan)
        unknown = np.isnan(codes) & frame[name].notna().to_numpy()
        if unknown.any():
            category = frame[name].iloc[int(unknown.argmax())]
            warnings.warn(
                f"covariate {name!r} has categories that fit did not see, such as {shown(category)}: "
                "they are treated as unknown",
                stacklevel=2,
            )
        return np.nan_to_num(codes, nan=UNKNOWN)
