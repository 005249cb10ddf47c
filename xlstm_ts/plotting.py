"""Pictures: fan charts, backtests, what a network remembers and looks at."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from xlstm_ts.extras import named_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTORY, FAN, ACTUAL, GRID = "#3b4252", "#c2410c", "#64748b", "#e5e7eb"
INTERVAL = re.compile(r"^(?P<model>.+)-lo-(?P<level>[\d.]+)$")
BLOCK_COLOURS = ["#c2410c", "#3b4252", "#64748b", "#0f766e"]
TINTS = (0.18, 0.55)  # how much of the fan's colour the widest and the narrowest interval take


def plot_forecast(
    history: pd.DataFrame,
    forecast: pd.DataFrame,
    *,
    actual: pd.DataFrame | None = None,
    series: Any = None,
    last: int | None = None,
    model: str = "xLSTM",
    id_col: str = "unique_id",
    ds_col: str = "ds",
    y_col: str = "y",
    ax: Axes | None = None,
) -> Axes:
    """Draw one series' recent values, its median forecast and a band for every interval in ``forecast``.

    Args:
        history: long frame with the values before the forecast.
        forecast: what ``xLSTMForecaster.predict`` returned.
        actual: long frame with what came true, drawn dotted.
        series: which series; None is the first of ``forecast``.
        last: how many values of the history to draw; None is all.
        model: the column with the point forecast.
        ax: where to draw; None makes a new figure.

    Returns:
        The matplotlib axes drawn on.

    Raises:
        ValueError: a frame lacks the series.

    >>> ax = plot_forecast(df, forecaster.predict(level=[50, 80, 95]))
    >>> ax.figure.savefig("forecast.png")
    """
    series = forecast[id_col].iloc[0] if series is None else series
    past = _rows_of(history, series, id_col, "history")
    past = past.sort_values(ds_col).tail(len(past) if last is None else last)
    ahead = _rows_of(forecast, series, id_col, "forecast").sort_values(ds_col)
    axes = _axes((10, 4.5)) if ax is None else ax
    axes.plot(past[ds_col], past[y_col], color=HISTORY, linewidth=1.6, label="history")
    _draw_fan(axes, past.iloc[-1], ahead, model=model, ds_col=ds_col, y_col=y_col)
    if actual is not None:
        came = _rows_of(actual, series, id_col, "actual").sort_values(ds_col)
        axes.plot(came[ds_col], came[y_col], "o", color=ACTUAL, markersize=4, markerfacecolor="white", label="actual")
    return _dressed(axes, str(series))


def plot_backtest(
    backtest: pd.DataFrame,
    *,
    series: Any = None,
    lead: int = 1,
    model: str = "xLSTM",
    id_col: str = "unique_id",
    ds_col: str = "ds",
    y_col: str = "y",
    ax: Axes | None = None,
) -> Axes:
    """Draw what came true, and what was forecast for it ``lead`` steps before, with the widest interval.

    Args:
        backtest: what ``xLSTMForecaster.backtest`` returned; cut-offs ``step=1`` apart give a forecast for each row.
        series: which series; None is the first.
        lead: steps ahead, from 1.
        model: the column with the point forecast.
        ax: where to draw; None makes a new figure.

    Raises:
        ValueError: the backtest lacks the series or the lead.
    """
    series = backtest[id_col].iloc[0] if series is None else series
    rows = _rows_of(backtest, series, id_col, "backtest").sort_values(["cutoff", ds_col])
    rows = rows[rows.groupby("cutoff").cumcount() == lead - 1]
    if rows.empty:
        raise ValueError(f"backtest has no forecast {lead} steps ahead")
    axes = _axes((10, 4.5)) if ax is None else ax
    levels = sorted((match["level"] for match in map(INTERVAL.match, rows.columns) if match), key=float)
    if levels:
        low, high = (rows[f"{model}-{side}-{levels[-1]}"] for side in ("lo", "hi"))
        axes.fill_between(rows[ds_col], low, high, color=FAN, alpha=0.2, linewidth=0, label=f"{levels[-1]} % interval")
    axes.plot(rows[ds_col], rows[y_col], color=HISTORY, linewidth=1.4, label="actual")
    axes.plot(rows[ds_col], rows[model], color=FAN, linewidth=1.6, label=f"{model}, {lead} steps before")
    return _dressed(axes, str(series))


def plot_half_lives(half_lives: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """Draw how long each unit remembers, the units of a block in order; from ``xLSTMForecaster.half_lives``."""
    axes = _axes((7, 4.2)) if ax is None else ax
    for block, (row, colour) in enumerate(
        zip(np.sort(half_lives, axis=1), BLOCK_COLOURS * len(half_lives), strict=False)
    ):
        axes.plot(np.linspace(0, 100, len(row)), row, color=colour, linewidth=2, label=f"block {block + 1}")
    axes.set(yscale="log", xlabel="% of units that forget sooner", ylabel="half-life in rows")
    return _dressed(axes, "how long the units remember")


def plot_attribution(attribution: pd.Series, *, last: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw by how much each past value moves a forecast; from ``xLSTMForecaster.attribution``."""
    shown = attribution.tail(len(attribution) if last is None else last)
    axes = _axes((10, 3.6)) if ax is None else ax
    axes.vlines(shown.index, 0, shown.to_numpy(), color=FAN, linewidth=1.6)
    axes.axhline(0, color=HISTORY, linewidth=0.8)
    axes.set_ylabel("change of the forecast per unit")
    return _dressed(axes, str(attribution.name), legend=False)


@named_extra()
def _axes(size: tuple[float, float]) -> Axes:
    """Those of a new figure of so many inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def _dressed(axes: Axes, title: str, *, legend: bool = True) -> Axes:
    """The look that all pictures share."""
    axes.set_title(title, loc="left", fontweight="bold", color=HISTORY)
    if legend:
        axes.legend(loc="upper left", frameon=False, labelcolor=HISTORY)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=HISTORY)
    axes.margins(x=0.01)
    return axes


def _rows_of(frame: pd.DataFrame, series: Any, id_col: str, name: str) -> pd.DataFrame:
    rows = frame[frame[id_col] == series]
    if rows.empty:
        raise ValueError(f"{name} has no series {series!r}: choose one of {list(frame[id_col].unique()[:5])}")
    return rows


def _draw_fan(axes: Axes, now: pd.Series, ahead: pd.DataFrame, *, model: str, ds_col: str, y_col: str) -> None:
    """The median and its bands, widest first, all opening from the last known value."""
    from matplotlib.colors import to_rgb

    def from_now(values: pd.Series) -> list[Any]:
        return [now[y_col], *values]

    times = [now[ds_col], *ahead[ds_col]]
    matches = [match for match in map(INTERVAL.match, ahead.columns) if match and match["model"] == model]
    levels = sorted((match["level"] for match in matches), key=float, reverse=True)
    for rank, level in enumerate(levels):
        low, high = ahead[f"{model}-lo-{level}"], ahead[f"{model}-hi-{level}"]
        tint = TINTS[0] + (TINTS[1] - TINTS[0]) * rank / max(len(levels) - 1, 1)
        # Opaque, so that the legend shows the colour which overlapping bands have.
        colour = [1 - tint * (1 - channel) for channel in to_rgb(FAN)]
        axes.fill_between(times, from_now(low), from_now(high), color=colour, linewidth=0, label=f"{level} % interval")
    axes.plot(times, from_now(ahead[model]), color=FAN, linewidth=2, label=f"{model} median")
