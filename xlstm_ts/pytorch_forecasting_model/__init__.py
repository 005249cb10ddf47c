"""xLSTM as a model of pytorch-forecasting."""

from xlstm_ts.pytorch_forecasting_model.model import xLSTMModel

__all__ = ["xLSTMModel"]
