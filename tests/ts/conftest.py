"""Small panels and one forecaster fitted on them, shared by the forecaster's tests."""

import numpy as np
import pandas as pd
import pytest

from xlstm_ts import xLSTMForecaster
from xlstm_ts.training_config import TrainingConfig

SEASON, HORIZON = 4, 6
# As small and short as a fit can be that still uses every part.
TINY = {
    "horizon": HORIZON,
    "season_length": SEASON,
    "embedding_dim": 8,
    "num_heads": 2,
    "num_blocks": 1,
    "context_length": 12,
    "batch_size": 8,
    "max_epochs": 2,
    "val_size": 0,  # so few steps teach nothing that held-out rows would keep, and tests are of networks that learned
    "steps_per_epoch": 3,
    "random_state": 0,
}

TRAINING = TrainingConfig(
    context_tokens=3,
    batch_size=8,
    max_epochs=3,
    steps_per_epoch=4,
    learning_rate=5e-3,
    weight_decay=0.01,
    val_size=6,
    patience=10,
    seed=0,
)


def make_panel(lengths: dict[str, int], start: object = 1, freq: str | None = None) -> pd.DataFrame:
    """Noisy seasonal series; integer times unless a frequency is given."""
    rng = np.random.default_rng(0)
    frames = []
    for level, (name, length) in enumerate(lengths.items(), start=1):
        steps = np.arange(length)
        ds = steps + start if freq is None else pd.date_range(start, periods=length, freq=freq)
        y = 10.0 * level + np.sin(2 * np.pi * steps / SEASON) + 0.1 * rng.normal(size=length)
        frames.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y}))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def panel() -> pd.DataFrame:
    """Three series of different lengths with integer times."""
    return make_panel({"long": 60, "middle": 41, "short": 23})


@pytest.fixture(scope="session")
def fitted() -> xLSTMForecaster:
    """A tiny forecaster, fitted on the panel; tests must not change it."""
    return xLSTMForecaster(**TINY).fit(make_panel({"long": 60, "middle": 41, "short": 23}))
