"""Fan charts show the history, the median and every interval."""

import matplotlib as mpl
import pandas as pd
import pytest

from xlstm_ts.plotting import plot_forecast

from .conftest import make_panel

mpl.use("Agg")


@pytest.fixture
def forecast() -> pd.DataFrame:
    columns = {"xLSTM": 11.0, "xLSTM-lo-80": 10.0, "xLSTM-hi-80": 12.0, "xLSTM-lo-50": 10.5, "xLSTM-hi-50": 11.5}
    return pd.DataFrame({"unique_id": "a", "ds": [21, 22, 23]}).assign(**columns)


def test_every_interval_is_a_band_and_named_in_the_legend(forecast: pd.DataFrame) -> None:
    ax = plot_forecast(make_panel({"a": 20}), forecast)

    assert len(ax.collections) == 2
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["history", "80 % interval", "50 % interval", "xLSTM median"]


def test_the_fan_opens_from_the_last_known_value(forecast: pd.DataFrame) -> None:
    history = make_panel({"a": 20})

    median = plot_forecast(history, forecast).lines[1]

    assert median.get_xdata()[0] == 20
    assert median.get_ydata()[0] == history["y"].iloc[-1]


def test_only_the_last_values_are_drawn_when_asked_for(forecast: pd.DataFrame) -> None:
    ax = plot_forecast(make_panel({"a": 20}), forecast, last=5)

    assert len(ax.lines[0].get_xdata()) == 5


def test_what_came_true_is_drawn(forecast: pd.DataFrame) -> None:
    actual = make_panel({"a": 3}, start=21)

    ax = plot_forecast(make_panel({"a": 20}), forecast, actual=actual)

    assert len(ax.lines[2].get_xdata()) == 3


def test_an_unknown_series_is_named_with_the_known_ones(forecast: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"history has no series 'b': choose one of \['a'\]"):
        plot_forecast(make_panel({"a": 20}), forecast, series="b")
