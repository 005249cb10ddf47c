"""Which of the sLSTM's kernels a pass launches, and with what besides tensors: prepared once for arrays of a layout.

Shapes: B batch, S sequence, NH heads, DH head dim.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registration import traced
from ..triton_launcher import LAYOUTS, Launch
from .plan import ROWS, Plan, ProductPlan, num_processors, plan, product_plan
from .triton_kernels import slstm_backward, slstm_forward, slstm_weight_parts, slstm_weight_sum

SUM_BLOCK = {"BLOCK": 64}


class Layout(NamedTuple):
    """What the arrays and options of a call are; only where arrays lie, and what they hold, is left out."""

    B: int
    S: int
    NH: int
    DH: int
    of_gates: tuple[int, ...]  # strides, multiples of DH; none where only their gradient is asked for
    dtype: torch.dtype  # of gates
    weight_dtype: torch.dtype
    bias_dtype: torch.dtype | None
    lengths_dtype: torch.dtype | None
    device: torch.device
    fresh: bool  # no state is given
    with_resets: bool
    exponential_forget: bool
    clip: float | None

    @property
    def options(self) -> tuple[bool, float | None]:
        return self[-2:]


class Walk(NamedTuple):
    """A pass through time."""

    launches: tuple[Launch, ...]  # several where not all programs fit on the device at once
    shared: bool  # programs share a head, and wait for each other in what they write


class Product(NamedTuple):
    """The weights' gradients, from the gates' and h."""

    parts: Launch
    sum: Launch
    shape: tuple[int, int]  # of the parts


class Passes:
    """Forward and backward over arrays of a layout: what they launch, and the room that they need."""

    def __init__(self, layout: Layout) -> None:
        B, S, NH, DH = layout[:4]
        self.layout, self.device = layout, layout.device
        self.shape, self.state_shape, self.weight_shape = (B, S, NH, DH), (B, NH, DH), (4, NH, DH, DH)
        self.tape_shape = (B, S, NH, 4 - layout.exponential_forget + (layout.dtype == torch.float16), DH)
        self.forward = functools.cache(self._prepare_forward)
        self.backward = functools.cache(self._prepare_backward)

    def tape(self, *, empty: bool = False) -> Tensor:
        # Small alphas and slopes keep their relative precision in bfloat16, which float16 has no range for.
        dtype = torch.float32 if self.layout.dtype == torch.float32 else torch.bfloat16
        return torch.empty(*(0,) if empty else self.tape_shape, dtype=dtype, device=self.device)

    def _prepare_forward(self, record: bool) -> Walk:
        """With a ``record`` for backward or without."""
        layout = self.layout
        strides = tuple(stride // layout.DH for stride in layout.of_gates[:4])
        return self._walk(slstm_forward, strides, EXPONENTIAL_FORGET=layout.exponential_forget)

    def _prepare_backward(self, last: bool) -> Walk:
        """With gradients of the ``last`` state or without."""
        clip = self.layout.clip
        flags = {"CLIPPED": clip is not None, "EXPONENTIAL_FORGET": self.layout.exponential_forget}
        return self._walk(slstm_backward, (0.0 if clip is None else clip,), **flags)

    def _walk(self, kernel: Any, numbers: tuple[float, ...], **flags: bool) -> Walk:
        B, S, NH, DH = self.layout[:4]
        cut = plan(DH, torch.float32 in (self.layout.dtype, self.layout.weight_dtype))
        tiles, programs = _cdiv(B, ROWS) * NH, _cdiv(DH, cut.units)
        shared = programs > 1
        at_once = max(1, num_processors(self.device) // programs) if shared else tiles
        constants = _constants(cut, DH, shared, **flags)
        launches = (
            Launch(kernel, (programs, min(at_once, tiles - first)), (first, B, S, NH, *numbers), constants)
            for first in range(0, tiles, at_once)
        )
        return Walk(tuple(launches), shared)

    @functools.cached_property
    def product(self) -> Product:
        B, S, NH, DH = self.layout[:4]
        single = self.layout.dtype == torch.float32
        width = plan(DH, single).width
        tile = product_plan(width, single)
        tiles, size = (4 * width // tile.out) * (width // tile.into), 4 * NH * DH * (DH + 1)
        # As many parts as give each processor two programs, of at least four tiles of rows.
        num_parts = max(1, min(2 * num_processors(self.device) // (tiles * NH), _cdiv(B * S, 4 * tile.rows)))
        rows = _cdiv(_cdiv(B * S, num_parts), tile.rows) * tile.rows
        num_parts = _cdiv(B * S, rows)
        constants = _product_constants(tile, width, DH)
        parts = Launch(slstm_weight_parts, (tiles, NH, num_parts), (rows, B, S, NH), constants)
        numbers, blocks = (num_parts, 4 * NH * DH * DH, size), _cdiv(size, SUM_BLOCK["BLOCK"])
        return Product(parts, Launch(slstm_weight_sum, (blocks,), numbers, SUM_BLOCK), (num_parts, size))


_known = functools.lru_cache(LAYOUTS)(Passes)


def passes_over(
    sizes: tuple[int, ...],
    of_gates: tuple[int, ...],
    x: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor | None,
    h_first: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    *options: Any,
) -> Passes:
    """Those of a call with these; ``x`` is of the type of the gates."""
    types = x.dtype, recurrent_weight.dtype, *(None if x is None else x.dtype for x in (bias, lengths))
    arguments: tuple[Any, ...] = (*sizes, of_gates, *types, x.device, h_first is None, resets is not None, *options)
    layout = Layout(*arguments)
    return Passes(layout) if traced() else _known(layout)  # sizes that are traced as unknown are no key


@functools.cache
def _constants(layout: Plan, head_dim: int, cooperative: bool, **flags: bool) -> dict[str, Any]:
    """What a kernel that goes through time is compiled for."""
    tile = {"DH": head_dim, "D": layout.width, "UNITS": layout.units, "ROWS": ROWS, "STAGES": layout.stages}
    return {**tile, **flags, "num_warps": layout.warps, "launch_cooperative_grid": cooperative}


@functools.cache
def _product_constants(tile: ProductPlan, width: int, head_dim: int) -> dict[str, Any]:
    sizes = {"DH": head_dim, "D": width, "OUT": tile.out, "IN": tile.into, "ROWS": tile.rows}
    return {**sizes, "STAGES": tile.stages, "num_warps": tile.warps}


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
