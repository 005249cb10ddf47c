"""xLSTM forecasters for data frames, in the manner of scikit-learn; and ``xLSTMModel`` for pytorch-forecasting."""

from typing import TYPE_CHECKING, Any

from xlstm_ts.extras import named_extra

with named_extra():
    from xlstm_ts.baselines import seasonal_naive
    from xlstm_ts.forecaster import xLSTMForecaster
    from xlstm_ts.metrics import accuracy, mase, owa, smape
    from xlstm_ts.splits import PanelSplit

if TYPE_CHECKING:
    from xlstm_ts.pytorch_forecasting_model import xLSTMModel

__all__ = ["PanelSplit", "accuracy", "mase", "owa", "seasonal_naive", "smape", "xLSTMForecaster", "xLSTMModel"]


def __getattr__(name: str) -> Any:
    if name == "xLSTMModel":
        with named_extra():
            from xlstm_ts.pytorch_forecasting_model import xLSTMModel  # imports Lightning, which takes seconds
        return xLSTMModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
