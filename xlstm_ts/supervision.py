"""Forecasts of a window's tokens beside what came true after each.

Shapes: B batch, S tokens, H horizon, n parameters of a distribution.
"""

from typing import NamedTuple

from torch import Tensor

from xlstm_ts.network import ForecastNetwork
from xlstm_ts.scaling import Scale
from xlstm_ts.tokens import Tokens
from xlstm_ts.windows import Windows


class Supervised(NamedTuple):
    """Forecasts and targets in units of each origin's scale.

    Attributes:
        parameters: of the head's distributions (B, S, H, n).
        target: (B, S, H), arbitrary where not counted.
        counted: (B, S, H) bool: the target exists, and enough history lies before its origin.
        tokens: the look-back of each origin.
    """

    parameters: Tensor
    target: Tensor
    counted: Tensor
    tokens: Tokens

    @property
    def scale(self) -> Scale:
        """Of each origin."""
        return self.tokens.scale


def supervise(network: ForecastNetwork, batch: Windows, *, origins: int, least_history: int) -> Supervised:
    """Forecast at the newest ``origins`` tokens of windows whose last ``horizon`` values are unknown to all of them.

    Args:
        network: what forecasts.
        batch: windows of reach + (S - 1) * patch_length + horizon steps.
        origins: how many tokens.
        least_history: an origin counts if its series began so many steps before, and half of them were seen.
    """
    sizes, (values, seen, *_) = network.config, batch.rows
    parameters, tokens = network(batch.rows, origins=origins)
    ahead = values[:, sizes.reach :].unfold(1, sizes.horizon, sizes.patch_length)[:, -origins:]
    came = seen[:, sizes.reach :].unfold(1, sizes.horizon, sizes.patch_length)[:, -origins:]
    began = tokens.seen[..., : sizes.reach - least_history + 1].any(-1, keepdim=True)
    enough = 2 * tokens.seen[..., -least_history:].sum(-1, keepdim=True) >= least_history
    return Supervised(parameters, tokens.scale.normalise(ahead), came & began & enough, tokens)
