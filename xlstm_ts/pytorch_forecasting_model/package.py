"""What pytorch-forecasting's registry and its ``check_estimator`` read about the model."""

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pytorch_forecasting.metrics import (
    CrossEntropy,
    LogNormalDistributionLoss,
    NegativeBinomialDistributionLoss,
    PoissonLoss,
    TweedieLoss,
)
from pytorch_forecasting.models.base import _BasePtForecaster
from torch.utils.data import DataLoader


class xLSTMModel_pkg(_BasePtForecaster):
    """Tags and test settings of ``xLSTMModel``; the name is the one that pytorch-forecasting derives."""

    _tags: ClassVar[dict[str, Any]] = {
        "info:name": "xLSTMModel",
        "info:compute": 3,
        "info:pred_type": ["distr", "point", "quantile"],
        "info:y_type": ["category", "numeric"],
        "capability:exogenous": True,
        "capability:multivariate": True,
        "capability:pred_int": True,
        "capability:flexible_history_length": True,
        "capability:cold_start": True,
    }

    @classmethod
    def get_cls(cls) -> type:
        """The model's class."""
        from xlstm_ts.pytorch_forecasting_model.model import xLSTMModel

        return xLSTMModel

    @classmethod
    def get_base_test_params(cls) -> list[dict[str, Any]]:
        """Settings that every loss of pytorch-forecasting is tried with."""
        return [
            {"hidden_size": 8, "num_heads": 2},
            # Histories of different lengths, none among them, in one batch.
            {
                "hidden_size": 8,
                "num_heads": 2,
                "num_blocks": 1,
                "slstm_at": (),
                "dropout": 0.0,
                "data_loader_kwargs": {"min_encoder_length": 0},
            },
        ]

    @classmethod
    def _get_test_dataloaders_from(cls, params: dict[str, Any]) -> dict[str, DataLoader]:
        """Loaders ``train``, ``val`` and ``test`` whose target the loss of ``params`` admits."""
        from pytorch_forecasting.tests._conftest import make_dataloaders  # needs pytest

        loss = params.get("loss")
        panel = sales_panel()
        if isinstance(loss, NegativeBinomialDistributionLoss):
            panel["volume"] = panel["volume"].round()
        unit = params.get("clip_target", False) or isinstance(
            loss, LogNormalDistributionLoss | PoissonLoss | TweedieLoss
        )
        panel["target"] = panel["volume"].clip(1e-3, 1.0) if unit else panel["volume"]
        variables = {
            "target": "agency" if isinstance(loss, CrossEntropy) else "target",
            "time_varying_known_reals": ["price"],
            "time_varying_known_categoricals": ["month"],
            "time_varying_unknown_reals": ["target"],
            "static_categoricals": ["agency"],
        }
        return make_dataloaders(panel, **{**variables, **params.get("data_loader_kwargs", {})})


def sales_panel() -> pd.DataFrame:
    """Monthly sales of two products by two agencies, under the names that pytorch-forecasting's own checks use."""
    rng = np.random.default_rng(0)
    dates = pd.date_range("2015-01-01", periods=24, freq="MS")
    frames = [
        pd.DataFrame(
            {
                "agency": agency,
                "sku": sku,
                "date": dates,
                "time_idx": np.arange(len(dates)),
                "month": dates.month.astype(str),
                "price": rng.uniform(1.0, 2.0, len(dates)),
                "volume": rng.gamma(4.0, 5.0, len(dates)),
            }
        )
        for agency in ("Agency_1", "Agency_2")
        for sku in ("SKU_1", "SKU_2")
    ]
    return pd.concat(frames, ignore_index=True)
