"""The one config of training."""

from dataclasses import dataclass

LOSS_UNITS = ("origin", "series")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a ``ForecastNetwork`` is trained.

    Attributes:
        context_tokens: tokens of a training window.
        batch_size: windows in a gradient step.
        max_epochs: epochs at most; the learning rate ends at zero after them.
        steps_per_epoch: gradient steps before each validation; None is two passes over the data, at most 30 steps.
        learning_rate: the peak of a one-cycle schedule.
        weight_decay: of AdamW.
        loss_unit: ``origin`` measures errors in units of each origin's scale, ``series`` in those of its whole series.
        val_size: last values of every series that validate and calibrate; 0 trains on everything, uncalibrated, to the
            end of the schedule; None is a twentieth of all data in whole horizons, or a rehearsal if that is nothing.
        patience: epochs without a better validation loss before training stops.
        seed: of the windows' order.
    """

    context_tokens: int
    batch_size: int
    max_epochs: int
    steps_per_epoch: int | None
    learning_rate: float
    weight_decay: float
    val_size: int | None
    patience: int
    seed: int
    loss_unit: str = "origin"
