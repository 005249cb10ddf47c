"""xLSTM forecasters for data frames, in the manner of scikit-learn."""

from xlstm_ts.baselines import seasonal_naive
from xlstm_ts.forecaster import xLSTMForecaster
from xlstm_ts.metrics import accuracy, mase, owa, smape
from xlstm_ts.splits import PanelSplit

__all__ = ["PanelSplit", "accuracy", "mase", "owa", "seasonal_naive", "smape", "xLSTMForecaster"]
