"""Which weights a training ends with: as far from plain ones as held-out windows approve.

Weights between two others that share their beginning forecast about like a mixture of both (Wortsman et al., 2022):
where few rows teach, half of what was learned is often better than all of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from xlstm_ts.module import ForecastModule
from xlstm_ts.windows import Windows

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)

Weights = Mapping[str, Tensor]


class Lesson(NamedTuple):
    """How much of a training helped.

    Attributes:
        epochs: that led to the best weights; 0 where the plain ones were.
        share: of the way from the plain weights to those after these epochs.
    """

    epochs: int
    share: float


@torch.inference_mode()
def validation_loss(module: ForecastModule, held_out: DataLoader[Windows]) -> float:
    """The val_loss of a module as it is."""
    module.eval()
    losses = [(module.loss(batch, 1), len(batch.unit)) for batch in held_out]
    return float(sum(loss * count for loss, count in losses)) / sum(count for _, count in losses)


def between(start: Weights, end: Weights, share: float) -> dict[str, Tensor]:
    """Weights so far on the line from one to the other."""
    if share in (0, 1):  # as they are, also where the others are not finite
        return dict(end if share else start)
    return {name: torch.lerp(start[name], to, share) if to.is_floating_point() else to for name, to in end.items()}


def choose_weights(
    module: ForecastModule, start: Weights, best: Path, held_out: DataLoader[Windows]
) -> tuple[float, Lesson]:
    """Load the weights on the line from the plain to the best ones that forecast held-out windows best.

    Args:
        module: whose network's weights are chosen.
        start: the network's plain weights, none of the way.
        best: the checkpoint of the best epoch.
        held_out: windows that training did not see.

    Returns:
        Their validation loss, and what led to them.
    """
    checkpoint = torch.load(best, map_location="cpu", weights_only=True)
    end = {name.removeprefix("network."): tensor for name, tensor in checkpoint["state_dict"].items()}
    found = []
    for share in SHARES:
        module.network.load_state_dict(between(start, end, share))
        found.append((validation_loss(module, held_out), -share))
    loss, share = min(found)  # of equally good ones, what was learned
    module.network.load_state_dict(between(start, end, -share))
    return loss, Lesson(int(checkpoint["epoch"]) + 1 if share else 0, -share)
