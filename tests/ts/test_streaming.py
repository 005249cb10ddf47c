"""A series that comes in row by row is forecast as if its whole history were read again, at constant cost."""

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_ts import xLSTMForecaster
from xlstm_ts.memory import advance, newest, read_to_forecast
from xlstm_ts.windows import SeriesPool

from .conftest import HORIZON, TINY, make_panel


def hourly_load(steps: int) -> np.ndarray:
    """Like the oil temperatures of transformers: days, a slow drift, sensor steps, outages."""
    rng = np.random.default_rng(0)
    hours = np.arange(steps)
    values = 10 + 4 * np.sin(2 * np.pi * hours / 24) + 0.3 * rng.normal(size=steps).cumsum() + rng.normal(size=steps)
    values = values.round(1)
    values[rng.integers(0, steps, steps // 50)] = np.nan
    return values


def test_five_thousand_updates_equal_reading_the_whole_history_again() -> None:
    values = hourly_load(5300)
    forecaster = xLSTMForecaster(**{**TINY, "season_length": 24, "embedding_dim": 16}).fit(values[:300])
    network, stream = forecaster.network_, forecaster.stream(0)
    memory = stream.snapshot().remembered.memory

    for step in range(300, 5300):
        memory, _ = advance(network, memory, SeriesPool.from_lengths(values[[step]], np.ones(1, int)).rows)
        if step % 500 in (0, 7, 499):
            again = read_to_forecast(
                network, SeriesPool.from_lengths(values[: step + 1], np.array([step + 1])), torch.tensor([0])
            )
            torch.testing.assert_close(memory.hidden, again.hidden, rtol=1e-5, atol=1e-5)
            scale = [newest(network, each).tokens.scale for each in (memory, again)]
            torch.testing.assert_close(scale[0], scale[1], rtol=1e-12, atol=0)


def test_pushed_rows_are_forecast_from_like_updated_ones(fitted: xLSTMForecaster) -> None:
    stream = fitted.stream("middle")
    new = pd.DataFrame({"unique_id": "middle", "ds": [42, 43, 44], "y": [20.5, np.nan, 19.0]})

    for value in new["y"]:
        stream.push(value)

    whole = pd.concat([make_panel({"long": 60, "middle": 41, "short": 23}), new])
    expected = fitted.predict(whole[whole["unique_id"] == "middle"])
    pd.testing.assert_frame_equal(stream.forecast(), expected, rtol=1e-5)
    assert stream.last_ds == 44


def test_a_restored_stream_forgets_what_came_after_the_snapshot(fitted: xLSTMForecaster) -> None:
    stream = fitted.stream("long")
    before, snapshot = stream.forecast(), stream.snapshot()

    stream.push(1e3)
    assert not stream.forecast().equals(before)
    stream.restore(snapshot)

    pd.testing.assert_frame_equal(stream.forecast(), before, check_exact=True)


def test_streams_of_one_forecaster_do_not_disturb_each_other(fitted: xLSTMForecaster) -> None:
    before = fitted.stream("long").forecast()

    fitted.stream("long").push(5.0)

    pd.testing.assert_frame_equal(fitted.stream("long").forecast(), before, check_exact=True)


def test_a_stream_forecasts_further_than_trained(fitted: xLSTMForecaster) -> None:
    forecast = fitted.stream("long").forecast(3 * HORIZON, level=[50, 90])

    assert len(forecast) == 3 * HORIZON
    assert forecast.notna().all(axis=None)


def test_a_series_that_is_not_known_is_named(fitted: xLSTMForecaster) -> None:
    with pytest.raises(ValueError, match="no series 'nobody': known are"):
        fitted.stream("nobody")


def test_an_infinite_value_is_refused(fitted: xLSTMForecaster) -> None:
    with pytest.raises(ValueError, match="y must be finite, or NaN where it is missing, got inf"):
        fitted.stream("long").push(float("inf"))
