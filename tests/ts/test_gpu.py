"""On a GPU: training, mixed precision, forecasts equal to those of the CPU, and models that come back to it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_ts import xLSTMForecaster

from .conftest import HORIZON, TINY, make_panel

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
LONG = {"long": 90, "middle": 60}


def fit(panel: pd.DataFrame, accelerator: str, **options: object) -> xLSTMForecaster:
    trainer = {"accelerator": accelerator, **options.pop("trainer", {})}
    return xLSTMForecaster(**TINY | options, trainer_params=trainer).fit(panel)


def moved(forecaster: xLSTMForecaster, folder: Path, device: str) -> xLSTMForecaster:
    """The same forecaster, saved and loaded on a device."""
    forecaster.save(folder)
    return xLSTMForecaster.load(folder, device=device)


@pytest.mark.parametrize(
    ("accelerator", "precision"),
    [
        ("cpu", "bf16-mixed"),
        pytest.param("gpu", "bf16-mixed", marks=ON_GPU),
        pytest.param("gpu", "16-mixed", marks=ON_GPU),
    ],
)
def test_mixed_precision_trains_like_full_precision(accelerator: str, precision: str) -> None:
    panel, mixed = make_panel(LONG), {"trainer": {"precision": precision}}
    settings = {"max_epochs": 4, "linear_lookback": 8, "val_size": HORIZON}

    full = fit(panel, accelerator, **settings)
    other = fit(panel, accelerator, **settings, **mixed)

    assert other.losses_["val_loss"] == pytest.approx(full.losses_["val_loss"], rel=0.1)
    assert all(parameter.dtype is torch.float32 for parameter in other.network_.parameters())
    assert np.isfinite(other.predict()["xLSTM"]).all()


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=ON_GPU)])
def test_training_on_a_device_leaves_a_forecaster_on_the_cpu(accelerator: str) -> None:
    forecaster = fit(make_panel(LONG), accelerator)

    assert {parameter.device.type for parameter in forecaster.network_.parameters()} == {"cpu"}
    assert len(forecaster.predict()) == 2 * HORIZON


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_forecasts_updates_and_backtests_on_a_gpu_are_those_on_the_cpu(tmp_path: Path, device: str) -> None:
    panel = make_panel(LONG)
    new = panel.groupby("unique_id").tail(4)
    old = panel.drop(new.index)
    here = fit(old, "cpu")
    there = moved(here, tmp_path, device)

    assert there.network_.margins.device.type == device
    for forecast in (
        lambda f: f.predict(),
        lambda f: f.predict(horizon=2 * HORIZON),
        lambda f: f.backtest(panel, n_windows=5, step=1),
        lambda f: f.anomaly_scores(panel).drop(columns="unique_id"),
        lambda f: f.update(new).predict(),
    ):
        pd.testing.assert_frame_equal(forecast(there), forecast(here), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_a_forecaster_saved_on_a_gpu_goes_on_where_there_is_none(tmp_path: Path, device: str) -> None:
    panel = make_panel(LONG)
    there = moved(fit(panel, "gpu"), tmp_path / "first", device)
    expected = there.predict()

    here = moved(there, tmp_path / "second", "cpu")

    assert {tensor.device.type for tensor in here.network_.state_dict().values()} == {"cpu"}
    pd.testing.assert_frame_equal(here.predict(), expected, rtol=1e-4, atol=1e-4)
