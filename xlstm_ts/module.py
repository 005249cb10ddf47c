"""Loss and optimiser around a network, as Lightning trains it."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from xlstm_ts.loaders import derived_seed
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.supervision import supervise
from xlstm_ts.training_config import TrainingConfig
from xlstm_ts.windows import Windows

# A correction of the linear map goes half the way that least squares would: what is found in one period holds only
# partly in the next.
CORRECTION_PENALTY = 1.0
WARM_UP = 0.15
# Steps ahead that one window trains on in all: long horizons train fewer of their tokens.
TARGETS_A_WINDOW = 4096


class ForecastModule(L.LightningModule):
    """Loss and optimiser around a ``ForecastNetwork``."""

    def __init__(self, network: ForecastNetwork, config: TrainingConfig, *, least_history: int) -> None:
        super().__init__()
        self.network = network
        self.training_config = config
        self.least_history = least_history
        self.origins = max(1, min(config.context_tokens, TARGETS_A_WINDOW // network.config.horizon))

    def training_step(self, batch: Windows, batch_index: int) -> Tensor:
        penalty = CORRECTION_PENALTY if self.network.config.linear_lookback else 0.0
        loss = self.loss(batch, self.origins, penalty=penalty)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Windows, batch_index: int) -> None:
        self.log("val_loss", self.loss(batch, 1), prog_bar=True, batch_size=len(batch.unit))

    def configure_optimizers(self) -> Any:
        config = self.training_config
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=WARM_UP,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Windows, batch_index: int) -> None:
        # A training that is taken up again drops the same units as one that was not interrupted.
        torch.manual_seed(derived_seed(self.training_config.seed, self.global_step, self.global_rank))

    def loss(self, batch: Windows, origins: int, *, penalty: float = 0.0) -> Tensor:
        """Mean loss of the head over the steps ahead of the newest ``origins`` tokens.

        The penalty weighs the squared distance to the linear map's forecast.
        """
        part = supervise(self.network, batch, origins=origins, least_history=self.least_history)
        parameters, target, head = part.parameters, part.target, self.network.head
        ratio = torch.ones(())
        if self.training_config.loss_unit == "series" and head.rescales:
            ratio = (part.scale.scale / batch.unit[:, None, None]).float()
            parameters, target = parameters * ratio.unsqueeze(-1), target * ratio
        loss = head.loss(parameters, target, part.scale)
        if penalty:
            correction = head.centre(parameters, part.scale) - self.network.candidates.mapped(part.tokens) * ratio
            loss = loss + penalty * correction.square()
        return torch.where(part.counted, loss, 0.0).sum() / part.counted.sum().clamp(min=1)
