"""Half-lives are those of the gates, attributions those of finite differences."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

from xlstm_ts import xLSTMForecaster
from xlstm_ts.plotting import plot_attribution, plot_backtest, plot_half_lives

from .conftest import HORIZON, SEASON, make_panel

mpl.use("Agg")


@pytest.mark.parametrize("bias", [0.0, 1.0, 2.0])
def test_half_lives_are_those_of_constant_forget_gates(fitted: xLSTMForecaster, tmp_path, bias: float) -> None:
    fitted.save(tmp_path)
    copy = xLSTMForecaster.load(tmp_path)
    cell = copy.network_.stack.blocks[0].cell
    with torch.no_grad():
        cell.input_weight[:2] = 0
        cell.recurrent_weight.zero_()
        cell.bias[0], cell.bias[1] = 0.0, bias

    lives = copy.half_lives(make_panel({"a": 1200}))

    kept = 1 / (1 + np.exp(-bias))
    np.testing.assert_allclose(lives, np.full((1, 8), SEASON * np.log(0.5) / np.log(kept)), rtol=0.05)


def test_an_attribution_is_the_derivative_of_the_forecast(fitted: xLSTMForecaster) -> None:
    panel = make_panel({"a": 40})

    moved = fitted.attribution(panel, step=2)

    assert moved.index.tolist() == list(range(1, 41))
    for row in (39, 30, 12):
        pair = [panel.assign(y=panel["y"] + sign * 1e-3 * (panel.index == row)) for sign in (1, -1)]
        high, low = (fitted.predict(each)["xLSTM"].iloc[1] for each in pair)
        np.testing.assert_allclose(moved.iloc[row], (high - low) / 2e-3, rtol=0.05, atol=2e-3)


def test_a_backtest_is_drawn_at_one_lead(fitted: xLSTMForecaster) -> None:
    backtest = fitted.backtest(make_panel({"a": 60}), n_windows=10, step=1)

    ax = plot_backtest(backtest, lead=HORIZON)

    assert [len(line.get_xdata()) for line in ax.lines] == [10, 10]
    with pytest.raises(ValueError, match="no forecast 7 steps ahead"):
        plot_backtest(backtest, lead=HORIZON + 1)


def test_half_lives_and_attributions_are_drawn(fitted: xLSTMForecaster) -> None:
    assert len(plot_half_lives(fitted.half_lives()).lines) == 1
    assert plot_attribution(fitted.attribution(), last=20).collections


def test_an_attribution_ends_with_the_trained_horizon(fitted: xLSTMForecaster) -> None:
    with pytest.raises(ValueError, match="step must be at most the horizon"):
        fitted.attribution(step=1000)
