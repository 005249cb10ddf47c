"""The residual blocks: pre-norm, a mixer with memory, an optional FFN.

Shapes: B batch, S sequence, D embedding dim, E inner dim, K convolution kernel size.
Sources: Beck et al. 2024 (xLSTM, arXiv 2405.04517), figures 10 and 11; Beck et al. 2025 (xLSTM 7B, arXiv 2503.13427);
Auer et al. 2025 (TiRex, arXiv 2505.23719).
"""

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused
from .cells import mLSTMCell, sLSTMCell
from .checks import check_divides, check_integer
from .init import output_init_, small_init_
from .layers import CausalConv, GatedFFN, HeadwiseLinear, RMSNorm, normalise, residual_norm
from .ops.checks import check_devices, check_resets, check_shape
from .state import BlockState, mLSTMState, sLSTMState

TIREX: MappingProxyType[str, Any] = MappingProxyType(
    {"norm": "rms", "conv_kernel_size": 0, "ffn_factor": 8 / 3, "ffn_activation": "silu"}
)
"""The options that make an ``sLSTMBlock`` TiRex's block: ``sLSTMBlock(512, 4, **TIREX)``."""


class xLSTMBlock(nn.Module, ABC):
    """What all residual blocks share: pre-norm, a mixer with memory, an optional FFN, and the state they carry."""

    norm: nn.LayerNorm | RMSNorm
    conv: CausalConv | None
    cell: mLSTMCell | sLSTMCell
    has_papers_mixer: bool  # which the C core has too
    ffn_norm: nn.LayerNorm | RMSNorm
    ffn: GatedFFN | None
    dropout: nn.Dropout

    @abstractmethod
    def mixer(
        self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        """The block's memory, without norm and residual connection."""

    def initial_state(self, batch_size: int) -> BlockState:
        """The state before any input: an empty convolution window beside the cell's empty memory."""
        cell = self.cell.initial_state(batch_size)
        window_size = 0 if self.conv is None else self.conv.kernel_size - 1
        return BlockState(cell.n.new_zeros(batch_size, window_size, self.cell.dim), cell)

    def forward(
        self,
        x: Tensor,
        state: BlockState | None = None,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, BlockState]:
        """Run the block over a sequence and return outputs and the state after it.

        Args:
            x: inputs (B, S, D).
            state: where to continue; None is the empty memory.
            resets: bool (B, S); where true, the row forgets everything before it reads that step.
            lengths: integers (B,); row b ends after its first ``lengths[b]`` steps, what its outputs hold beyond them
                is unspecified. The inputs there must be finite, as the stack sees to.

        Returns:
            Outputs (B, S, D), and the state after each row's last step.

        Raises:
            ValueError: shapes or devices do not fit, or the sequence is empty.
            TypeError: ``resets`` is not boolean, or the state not float32 (float64 for float64 inputs).
        """
        state = state or self.initial_state(x.shape[0])  # len() would fix B in a trace
        self._check(x, state, resets, lengths)
        x, state = self.add_mixer(x, state, resets, lengths)
        if self.ffn is not None:
            x = x + self.dropout(self.ffn(normalise(self.ffn_norm, x)))
        return x, state

    def add_mixer(
        self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        """The residual stream after the mixer; overridden where one call does all of it."""
        y, state = self.mixer(normalise(self.norm, x), state, resets, lengths)
        return x + self.dropout(y), state

    def _check(self, x: Tensor, state: BlockState, resets: Tensor | None, lengths: Tensor | None) -> None:
        """Raise on arguments that do not fit, but for the memory, which its op checks."""
        B, S = x.shape[:2]
        if S == 0:
            raise ValueError(f"the sequence must have at least one step, got x of shape {tuple(x.shape)}")
        window_size = 0 if self.conv is None else self.conv.kernel_size - 1
        check_shape("state.conv", state.conv, (B, window_size, self.cell.dim), "(B, K - 1, channels)")
        check_resets(resets, B, S)
        if lengths is not None:
            check_shape("lengths", lengths, (B,), "(B,)")
        check_devices({"x": x, "state.conv": state.conv, "resets": resets, "lengths": lengths})


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
        if not (self.has_papers_mixer and fused.runs_mlstm(x, state.conv.shape[1] + 1)):
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
        if self.conv is not None and fused.runs_conv(x, self.conv.kernel_size, self.q.weight.shape[-1]):
            return self._mix_in_kernels(x, state, resets, lengths)
        inner, gate = self.up(x).chunk(2, dim=-1)  # (B, S, E) each
        convolved, window = convolve(self.conv, inner, state.conv, resets, lengths)
        h, cell = self.cell(self.q(convolved), self.k(convolved), self.v(inner), state.cell, resets, lengths)
        if self.skip is not None:
            h = h + self.skip * convolved
        return self.down(h * F.silu(gate)), BlockState(window, cell)

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
        if self.has_papers_mixer and fused.runs_slstm(x, self.cell.head_dim):
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


def convolution(dim: int, kernel_size: int) -> CausalConv | None:
    """The causal convolution of a block, or None for a kernel of size 0."""
    check_integer("conv_kernel_size", kernel_size, minimum=0)
    return CausalConv(dim, kernel_size) if kernel_size else None


def convolve(
    conv: CausalConv | None, x: Tensor, window: Tensor, resets: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """SiLU of the convolution and the window after it; x itself and its empty window where there is no convolution."""
    if conv is None:
        return x, window
    if fused.runs_conv(x, conv.kernel_size):
        convolved, window = fused.conv(x, window, [conv.weight, conv.bias], resets, lengths)
        return convolved, window
    convolved, window = conv(x, window, resets, lengths)
    return F.silu(convolved), window


def round_up(size: float, multiple: int) -> int:
    """The nearest integer to ``size``, rounded up to a multiple."""
    return -(-round(size) // multiple) * multiple
