"""What least squares must know of windows: products of look-backs with themselves and with what followed.

Shapes: M windows, L values of a look-back, newest last, H horizon.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Look-backs and what followed them, both relative to the location of the look-back.

    Attributes:
        behind: (M, L), zero where not seen.
        ahead: (M, H), zero where not seen.
        came: (M, H) bool: seen.
    """

    behind: Tensor
    ahead: Tensor
    came: Tensor

    def select(self, windows: Tensor) -> "Pairs":
        """Those of some windows, bool (M,)."""
        return Pairs(*(field[windows] for field in self))


class Moments(NamedTuple):
    """Sums over windows, float64.

    Attributes:
        inputs: of products of look-backs with themselves (L, L).
        outputs: of products of look-backs with what followed (L, H).
        squares: of the squares of what followed (H,).
        windows: how many there are ().
        came: in how many of them each step ahead was seen (H,).
    """

    inputs: Tensor
    outputs: Tensor
    squares: Tensor
    windows: Tensor
    came: Tensor

    @classmethod
    def none(cls, lookback: int, horizon: int) -> "Moments":
        """Those of no window."""
        return cls.of(Pairs(torch.zeros(0, lookback), torch.zeros(0, horizon), torch.zeros(0, horizon).bool()))

    @classmethod
    def of(cls, pairs: Pairs) -> "Moments":
        """Those of some windows."""
        behind, ahead, came = pairs
        products = behind.T @ behind, behind.T @ ahead, ahead.square().sum(0)
        return cls(*(each.double() for each in (*products, torch.tensor(len(behind)), came.sum(0))))

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean products and squares, each over the windows in which what followed was seen."""
        windows, came = self.windows.clamp(min=1), self.came.clamp(min=1)
        return self.inputs / windows, self.outputs / came, self.squares / came


def join(parts: Iterable[Moments]) -> Moments:
    """The moments of all windows of the parts."""
    return Moments(*(torch.stack(sums).sum(0) for sums in zip(*parts, strict=True)))


def squared_error(weight: Tensor, moments: Moments) -> Tensor:
    """Mean squared error of a map (L, H), on the windows of some moments: exact where no value ahead is missing."""
    inputs, outputs, squares = moments.means()
    errors = squares - 2 * (weight * outputs).sum(0) + (weight * (inputs @ weight)).sum(0)
    error = (errors * moments.came).sum() / moments.came.sum().clamp(min=1)
    numbers = torch.finfo(error.dtype)
    return error.clamp(min=numbers.eps * float(squares.mean()) + numbers.tiny)  # as fine as the difference can tell
