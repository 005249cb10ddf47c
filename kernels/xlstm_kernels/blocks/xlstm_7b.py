"""The block of xLSTM 7B.

Shapes: B batch, S sequence, D embedding dim.
"""

import torch
from torch import Tensor, nn

from ..cells import mLSTMCell
from ..checks import check_divides
from ..init import output_init_, small_init_
from ..layers import GatedFFN, residual_norm
from ..state import BlockState
from .base import round_up, xLSTMBlock


class xLSTM7BBlock(xLSTMBlock):
    """The block of xLSTM 7B: the matrix memory works at the embedding's width, a SwiGLU FFN follows, no convolution.

    It trades quality at small sizes (0.91 of perplexity at 160 million parameters, as published) for fewer, larger
    matrix products.

    Args:
        embedding_dim: width D of the residual stream.
        num_heads: heads of the memory; must divide D and the width of queries and keys.
        qk_factor: width of queries and keys as a multiple of D.
        ffn_factor: hidden width of the FFN as a multiple of D, rounded up to ``ffn_round_to``.
        ffn_round_to: multiple that the FFN's hidden width is rounded up to.
        norm: ``rms`` or ``layer``.
        input_gate, normalize, soft_cap: as in ``mlstm``.
        input_gate_init: start of the input gate's bias, ``closed`` or ``normal``.
        dropout: share of the mixer's and the FFN's outputs dropped in training.
        num_blocks: depth of the stack, which scales the output projections' initialisation.

    Raises:
        ValueError: the heads do not divide a width, or an option is unknown.
    """

    cell: mLSTMCell

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        *,
        qk_factor: float = 0.5,
        ffn_factor: float = 8 / 3,
        ffn_round_to: int = 8,
        norm: str = "rms",
        input_gate: str = "exponential",
        normalize: bool = True,
        soft_cap: float | None = 15.0,
        input_gate_init: str = "closed",
        dropout: float = 0.0,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        qk_dim = round(qk_factor * embedding_dim)
        check_divides("num_heads", num_heads, "embedding_dim", embedding_dim)
        check_divides("num_heads", num_heads, "the width of queries and keys", qk_dim)
        self.norm = residual_norm(norm, embedding_dim)
        self.conv, self.has_papers_mixer = None, False
        self.q, self.k = (nn.Linear(embedding_dim, qk_dim, bias=False) for _ in range(2))
        self.v, self.o = (nn.Linear(embedding_dim, embedding_dim, bias=False) for _ in range(2))
        self.cell = mLSTMCell(
            embedding_dim,
            num_heads,
            qk_dim=qk_dim,
            gate_dim=embedding_dim,
            input_gate=input_gate,
            normalize=normalize,
            soft_cap=soft_cap,
            input_gate_init=input_gate_init,
        )
        self.down = nn.Linear(embedding_dim, embedding_dim, bias=False)
        hidden_dim = round_up(ffn_factor * embedding_dim, ffn_round_to)
        self.ffn_norm = residual_norm(norm, embedding_dim)
        self.ffn = GatedFFN(embedding_dim, hidden_dim, num_blocks=num_blocks, activation="silu")
        self.dropout = nn.Dropout(dropout)
        for projection in (self.q, self.k, self.v, self.o):
            small_init_(projection.weight.data, embedding_dim)
        output_init_(self.down.weight.data, embedding_dim, num_blocks)

    def mixer(
        self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        h, cell = self.cell(self.q(x), self.k(x), self.v(x), state.cell, resets, lengths, gate_input=x)
        return self.down(torch.sigmoid(self.o(x)) * h), BlockState(state.conv, cell)
