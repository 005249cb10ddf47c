"""The paper's sLSTM block, which with other options is TiRex's.

Shapes: B batch, S sequence, D embedding dim.
"""

from types import MappingProxyType
from typing import Any, cast

from torch import Tensor, nn

from .. import fused
from ..cells import sLSTMCell
from ..checks import check_divides
from ..layers import GatedFFN, residual_norm
from ..state import BlockState, sLSTMState
from .base import convolution, convolve, is_plain, round_up, xLSTMBlock

TIREX: MappingProxyType[str, Any] = MappingProxyType(
    {"norm": "rms", "conv_kernel_size": 0, "ffn_factor": 8 / 3, "ffn_activation": "silu"}
)
"""The options that make an ``sLSTMBlock`` TiRex's block: ``sLSTMBlock(512, 4, **TIREX)``."""


class sLSTMBlock(xLSTMBlock):
    """The paper's post up-projection block: the scalar memory works at the embedding's width, a gated FFN follows.

    TiRex's block is this one without a convolution, with RMS norms and a SwiGLU FFN: ``sLSTMBlock(512, 4, **TIREX)``.

    Args:
        embedding_dim: width D of the residual stream.
        num_heads: heads of the memory; must divide D.
        conv_kernel_size: steps that input and forget gate look back over; 0 leaves the convolution out.
        ffn_factor: hidden width of the FFN as a multiple of D, rounded up to ``ffn_round_to``.
        ffn_round_to: multiple that the FFN's hidden width is rounded up to.
        ffn_activation: ``gelu``, or ``silu`` for SwiGLU.
        norm: ``layer`` or ``rms``.
        forget_gate, recurrent_gradient_clip: as in ``slstm``.
        recurrent_init: start of the recurrent weight, ``zeros`` or ``uniform``.
        dropout: share of the mixer's and the FFN's outputs dropped in training.
        block_index, num_blocks: place in the stack, which sets the forget gate's bias and the output scale.

    Raises:
        ValueError: the heads do not divide the embedding, or an option is unknown.
    """

    cell: sLSTMCell

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        *,
        conv_kernel_size: int = 4,
        ffn_factor: float = 4 / 3,
        ffn_round_to: int = 8,
        ffn_activation: str = "gelu",
        norm: str = "layer",
        forget_gate: str = "sigmoid",
        recurrent_gradient_clip: float | None = None,
        recurrent_init: str = "zeros",
        dropout: float = 0.0,
        block_index: int = 0,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        check_divides("num_heads", num_heads, "embedding_dim", embedding_dim)
        hidden_dim = round_up(ffn_factor * embedding_dim, ffn_round_to)
        self.norm = residual_norm(norm, embedding_dim)
        self.conv = convolution(embedding_dim, conv_kernel_size)
        self.cell = sLSTMCell(
            embedding_dim,
            num_heads,
            forget_gate=forget_gate,
            recurrent_gradient_clip=recurrent_gradient_clip,
            recurrent_init=recurrent_init,
            block_index=block_index,
            num_blocks=num_blocks,
        )
        gated_as_papers = (forget_gate, recurrent_gradient_clip) == ("sigmoid", None)
        self.has_papers_mixer = gated_as_papers and self.conv is not None
        self.ffn_norm = residual_norm(norm, embedding_dim)
        self.ffn = GatedFFN(embedding_dim, hidden_dim, num_blocks=num_blocks, activation=ffn_activation)
        self.dropout = nn.Dropout(dropout)

    def mixer(
        self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        if self.has_papers_mixer and fused.runs_slstm(x, self.cell.head_dim) and is_plain(self):
            return self._mix_compiled(x, state, resets, lengths)
        convolved, window = convolve(self.conv, x, state.conv, resets, lengths)
        h, cell = self.cell(convolved, x, state.cell, resets, lengths)
        return h, BlockState(window, cell)

    def _mix_compiled(
        self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        """``mixer`` in one call, for a block that has the paper's."""
        conv, cell = self.conv, self.cell
        assert conv is not None
        weights = (conv.weight, conv.bias, cell.input_weight, cell.recurrent_weight, cell.bias, cell.norm.weight)
        h, after = fused.slstm_mixer(
            x, state.conv, cast(sLSTMState, state.cell), weights, resets, lengths, norm_eps=cell.norm.eps
        )
        return h, BlockState(conv.window_after(x, state.conv, resets, lengths), after)
