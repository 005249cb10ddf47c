"""The paper's two residual blocks: mLSTM between an up- and a down-projection, sLSTM followed by a gated FFN.

Shapes: B batch, S sequence, D embedding dim, E inner dim, K convolution kernel size.
Source: Beck et al. 2024 (arXiv 2405.04517), figures 10 and 11.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused
from .cells import mLSTMCell, sLSTMCell
from .init import output_init_, small_init_
from .layers import CausalConv, GatedFFN, HeadwiseLinear
from .state import BlockState


class xLSTMBlock(nn.Module, ABC):
    """What all residual blocks share: pre-norm, a mixer with memory, an optional FFN, and the state they carry."""

    norm: nn.Module
    conv: CausalConv
    cell: mLSTMCell | sLSTMCell
    ffn_norm: nn.Module
    ffn: nn.Module | None
    dropout: nn.Dropout

    @abstractmethod
    def mixer(self, x: Tensor, state: BlockState, resets: Tensor | None) -> tuple[Tensor, BlockState]:
        """The block's memory, without norm and residual connection."""

    def initial_state(self, batch_size: int) -> BlockState:
        """The state before any input: an empty convolution window beside the cell's empty memory."""
        cell = self.cell.initial_state(batch_size)
        window = cell.n.new_zeros(batch_size, self.conv.kernel_size - 1, self.conv.weight.shape[1])
        return BlockState(window, cell)

    def forward(
        self, x: Tensor, state: BlockState | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, BlockState]:
        """x (B, S, D), resets (B, S) bool; returns the same shape and the state after the last step."""
        y, state = self.mixer(self.norm(x), state or self.initial_state(len(x)), resets)
        x = x + self.dropout(y)
        if self.ffn is not None:
            x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return x, state


class mLSTMBlock(xLSTMBlock):
    """Pre up-projection block: the matrix memory works at the inner width.

    Args:
        embedding_dim: width D of the residual stream.
        num_heads: heads of the memory; must divide the inner width.
        projection_factor: inner width E as a multiple of D.
        conv_kernel_size: steps that queries and keys look back over.
        qkv_block_size: channels that a block of the query, key and value maps mixes; must divide E.
        dropout: share of the block's outputs dropped in training.
        num_blocks: depth of the stack, which scales the output projection's initialisation.

    Raises:
        ValueError: the heads or the map's blocks do not divide the inner width.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        *,
        projection_factor: float = 2.0,
        conv_kernel_size: int = 4,
        qkv_block_size: int = 4,
        dropout: float = 0.0,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        inner_dim = round(projection_factor * embedding_dim)
        check_divides("num_heads", num_heads, "the inner width", inner_dim)
        check_divides("qkv_block_size", qkv_block_size, "the inner width", inner_dim)
        self.norm = nn.LayerNorm(embedding_dim, bias=False)
        self.up = nn.Linear(embedding_dim, 2 * inner_dim, bias=False)
        self.conv = CausalConv(inner_dim, conv_kernel_size)
        self.q, self.k, self.v = (HeadwiseLinear(inner_dim, qkv_block_size, init_dim=embedding_dim) for _ in range(3))
        self.cell = mLSTMCell(inner_dim, num_heads)
        self.skip = nn.Parameter(torch.ones(inner_dim))
        self.down = nn.Linear(inner_dim, embedding_dim, bias=False)
        self.ffn = None
        self.dropout = nn.Dropout(dropout)
        small_init_(self.up.weight.data, embedding_dim)
        output_init_(self.down.weight.data, embedding_dim, num_blocks)

    def mixer(self, x: Tensor, state: BlockState, resets: Tensor | None) -> tuple[Tensor, BlockState]:
        up = self.up(x)  # (B, S, 2 E)
        if fused.runs_mlstm(up, self.conv.kernel_size):
            return self._mix_compiled(up, state, resets)
        inner, gate = up.chunk(2, dim=-1)
        convolved, window = self.conv(inner, state.conv, resets)
        convolved = F.silu(convolved)
        h, cell = self.cell(self.q(convolved), self.k(convolved), self.v(inner), state.cell, resets)
        y = self.down((h + self.skip * convolved) * F.silu(gate))
        return y, BlockState(window, cell)

    def _mix_compiled(self, up: Tensor, state: BlockState, resets: Tensor | None) -> tuple[Tensor, BlockState]:
        """The rest of ``mixer`` in one call."""
        maps = (self.q.weight, self.k.weight, self.v.weight)
        gates, norm = self.cell.gates, self.cell.norm
        weights = (self.conv.weight, self.conv.bias, *maps, gates.weight, gates.bias, norm.weight, self.skip)
        y, cell = fused.mlstm_mixer(up, state.conv, state.cell, weights, resets, norm_eps=norm.eps)
        window = self.conv.window_after(up[..., : y.shape[-1]], state.conv, resets)
        return self.down(y), BlockState(window, cell)


class sLSTMBlock(xLSTMBlock):
    """Post up-projection block: the scalar memory works at the embedding's width, a gated FFN follows.

    Args:
        embedding_dim: width D of the residual stream.
        num_heads: heads of the memory; must divide D.
        conv_kernel_size: steps that input and forget gate look back over.
        ffn_factor: hidden width of the FFN as a multiple of D, rounded up to ``ffn_round_to``.
        ffn_round_to: multiple that the FFN's hidden width is rounded up to.
        dropout: share of the mixer's and the FFN's outputs dropped in training.
        block_index, num_blocks: place in the stack, which sets the forget gate's bias and the output scale.

    Raises:
        ValueError: the heads do not divide the embedding.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        *,
        conv_kernel_size: int = 4,
        ffn_factor: float = 4 / 3,
        ffn_round_to: int = 8,
        dropout: float = 0.0,
        block_index: int = 0,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        check_divides("num_heads", num_heads, "embedding_dim", embedding_dim)
        hidden_dim = -(-round(ffn_factor * embedding_dim) // ffn_round_to) * ffn_round_to
        self.norm = nn.LayerNorm(embedding_dim, bias=False)
        self.conv = CausalConv(embedding_dim, conv_kernel_size)
        self.cell = sLSTMCell(embedding_dim, num_heads, block_index=block_index, num_blocks=num_blocks)
        self.ffn_norm = nn.LayerNorm(embedding_dim, bias=False)
        self.ffn = GatedFFN(embedding_dim, hidden_dim, num_blocks=num_blocks)
        self.dropout = nn.Dropout(dropout)

    def mixer(self, x: Tensor, state: BlockState, resets: Tensor | None) -> tuple[Tensor, BlockState]:
        if fused.runs_slstm(x, self.cell.head_dim):
            return self._mix_compiled(x, state, resets)
        convolved, window = self.conv(x, state.conv, resets)
        h, cell = self.cell(F.silu(convolved), x, state.cell, resets)
        return h, BlockState(window, cell)

    def _mix_compiled(self, x: Tensor, state: BlockState, resets: Tensor | None) -> tuple[Tensor, BlockState]:
        """``mixer`` in one call."""
        conv, cell = self.conv, self.cell
        weights = (conv.weight, conv.bias, cell.input_weight, cell.recurrent_weight, cell.bias, cell.norm.weight)
        h, after = fused.slstm_mixer(x, state.conv, state.cell, weights, resets, norm_eps=cell.norm.eps)
        return h, BlockState(conv.window_after(x, state.conv, resets), after)


def check_divides(name: str, divisor: int, whole_name: str, whole: int) -> None:
    """Raise ValueError unless ``divisor`` is a positive divisor of ``whole``."""
    if divisor < 1 or whole % divisor:
        raise ValueError(f"{name} must divide {whole_name} {whole}, got {divisor}")
