"""``xLSTMModel`` for pytorch-forecasting's ``TimeSeriesDataSet``, and its package class.

| file | what it holds |
|---|---|
| ``tokens.py`` | covariates of a step to a token; what encoder and decoder see of them |
| ``model.py`` | the model |
| ``package.py`` | its tags and test settings, which pytorch-forecasting's ``check_estimator`` reads |
"""

from xlstm_ts.pytorch_forecasting_model.model import xLSTMModel
from xlstm_ts.pytorch_forecasting_model.package import xLSTMModel_pkg

__all__ = ["xLSTMModel", "xLSTMModel_pkg"]
