"""The paper's mLSTM block.

Shapes: B batch, S sequence, D embedding dim, E inner dim.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import fused
from ..cells import mLSTMCell
from ..checks import check_divides
from ..init import output_init_, small_init_
from ..layers import HeadwiseLinear, residual_norm
from ..state import BlockState, mLSTMState
from .base import convolution, convolve, is_plain, xLSTMBlock


class mLSTMBlock(xLSTMBlock):
    """The paper's pre up-projection block: the matrix memory works at the inner width.

    Args:
        embedding_dim: width D of the residual stream.
        num_heads: heads of the memory; must divide the inner width.
        projection_factor: inner width E as a multiple of D.
        conv_kernel_size: steps that queries and keys look back over; 0 leaves the convolution out.
        qkv_block_size: channels that a block of the query, key and value maps mixes; must divide E.
        learnable_skip: add the convolution's output to the memory's, each channel by a learned weight.
        norm: ``layer`` or ``rms``.
        input_gate, normalize, soft_cap: as in ``mlstm``.
        input_gate_init: start of the input gate's bias, ``normal`` or ``closed``.
        dropout: share of the block's outputs dropped in training.
        num_blocks: depth of the stack, which scales the output projection's initialisation.

    Raises:
        ValueError: the heads or the map's blocks do not divide the inner width, or an option is unknown.
    """

    cell: mLSTMCell

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        *,
        projection_factor: float = 2.0,
        conv_kernel_size: int = 4,
        qkv_block_size: int = 4,
        learnable_skip: bool = True,
        norm: str = "layer",
        input_gate: str = "exponential",
        normalize: bool = True,
        soft_cap: float | None = None,
        input_gate_init: str = "normal",
        dropout: float = 0.0,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        inner_dim = round(projection_factor * embedding_dim)
        check_divides("num_heads", num_heads, "the inner width", inner_dim)
        check_divides("qkv_block_size", qkv_block_size, "the inner width", inner_dim)
        self.norm = residual_norm(norm, embedding_dim)
        self.up = nn.Linear(embedding_dim, 2 * inner_dim, bias=False)
        self.conv = convolution(inner_dim, conv_kernel_size)
        self.q, self.k, self.v = (HeadwiseLinear(inner_dim, qkv_block_size, init_dim=embedding_dim) for _ in range(3))
        self.cell = mLSTMCell(
            inner_dim,
            num_heads,
            input_gate=input_gate,
            normalize=normalize,
            soft_cap=soft_cap,
            input_gate_init=input_gate_init,
        )
        self.skip = nn.Parameter(torch.ones(inner_dim)) if learnable_skip else None
        gated_as_papers = (input_gate, normalize, soft_cap) == ("exponential", True, None)
        self.has_papers_mixer = gated_as_papers and self.conv is not None and self.skip is not None
        self.down = nn.Linear(inner_dim, embedding_dim, bias=False)
        self.ffn = None
        self.dropout = nn.Dropout(dropout)
        small_init_(self.up.weight.data, embedding_dim)
        output_init_(self.down.weight.data, embedding_dim, num_blocks)

    def add_mixer(
        self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        if not (self.has_papers_mixer and fused.runs_mlstm(x, state.conv.shape[1] + 1) and is_plain(self)):
            return super().add_mixer(x, state, resets, lengths)
        drops = self.training and self.dropout.p > 0
        y, state = fused.mlstm_block(
            x,
            state,
            self._weights(),
            resets,
            lengths,
            centred=isinstance(self.norm, nn.LayerNorm),
            residual=not drops,
            norm_eps=self.norm.eps,
            head_norm_eps=self.cell.norm.eps,
        )
        return x + self.dropout(y) if drops else y, state

    def _weights(self) -> fused.mLSTMWeights:
        assert self.conv is not None
        assert self.skip is not None
        gates = self.cell.gates
        return fused.mLSTMWeights(
            norm=self.norm.weight,
            up=self.up.weight,
            conv=self.conv.weight,
            conv_bias=self.conv.bias,
            q=self.q.weight,
            k=self.k.weight,
            v=self.v.weight,
            gates=gates.weight,
            gates_bias=gates.bias,
            head_norm=self.cell.norm.weight,
            skip=self.skip,
            down=self.down.weight,
        )

    def mixer(
        self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        if self._runs_in_kernels(x):
            return self._mix_in_kernels(x, state, resets, lengths)
        inner, gate = self.up(x).chunk(2, dim=-1)  # (B, S, E) each
        convolved, window = convolve(self.conv, inner, state.conv, resets, lengths)
        h, cell = self.cell(self.q(convolved), self.k(convolved), self.v(inner), state.cell, resets, lengths)
        if self.skip is not None:
            h = h + self.skip * convolved
        return self.down(h * F.silu(gate)), BlockState(window, cell)

    def _runs_in_kernels(self, x: Tensor) -> bool:
        if self.conv is None or not is_plain(self):
            return False
        return fused.runs_conv(x, self.conv.kernel_size, self.q.weight.shape[-1])

    def _mix_in_kernels(
        self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        """``mixer`` with one kernel before the memory and one after it."""
        assert self.conv is not None
        inner, gate = fused.split_linear(x, self.up.weight)
        conv, gates, norm = self.conv, self.cell.gates, self.cell.norm
        weights = [conv.weight, conv.bias, self.q.weight, self.k.weight, self.v.weight, gates.weight, gates.bias]
        convolved, window, q, k, v, i, f = fused.conv(inner, state.conv, weights, resets, lengths)
        h, cell = self.cell.remember(q, k, v, i, f, cast(mLSTMState, state.cell), resets, lengths)
        skipped = None if self.skip is None else convolved
        y = fused.norm(h, norm.weight, norm.eps, skipped, self.skip, gate)
        return self.down(y), BlockState(window, cell)
