"""A residual stack of xLSTM blocks, and the one config that describes it.

Shapes: B batch, S sequence, D embedding dim.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from .blocks import mLSTMBlock, sLSTMBlock, xLSTMBlock
from .pretrained import load_model, save_model
from .state import StackState


@dataclass(frozen=True, kw_only=True)
class xLSTMConfig:
    """What an ``xLSTMBlockStack`` is made of.

    Attributes:
        embedding_dim: width D of the residual stream.
        num_blocks: number of blocks.
        num_heads: heads of every memory.
        slstm_at: indices of the blocks that are sLSTM blocks; negative ones count from the end. The others are mLSTM.
        projection_factor: inner width of an mLSTM block as a multiple of D.
        ffn_factor: hidden width of an sLSTM block's FFN as a multiple of D.
        ffn_round_to: multiple that this width is rounded up to (64 in the paper's code, which small models pay for).
        conv_kernel_size: steps that the causal convolutions look back over.
        qkv_block_size: channels that a block of an mLSTM block's query, key and value maps mixes.
        dropout: share of each block's outputs dropped in training.

    Raises:
        ValueError: a value is out of range, or sizes do not divide.
    """

    embedding_dim: int
    num_blocks: int
    num_heads: int = 4
    slstm_at: tuple[int, ...] = ()
    projection_factor: float = 2.0
    ffn_factor: float = 4 / 3
    ffn_round_to: int = 8
    conv_kernel_size: int = 4
    qkv_block_size: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "num_blocks", "num_heads", "conv_kernel_size", "qkv_block_size", "ffn_round_to"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("projection_factor", "ffn_factor"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        outside = [index for index in self.slstm_at if not -self.num_blocks <= index < self.num_blocks]
        if outside:
            raise ValueError(f"slstm_at names blocks {outside}, but num_blocks is {self.num_blocks}")

    @property
    def slstm_blocks(self) -> frozenset[int]:
        """``slstm_at`` counted from the front."""
        return frozenset(index % self.num_blocks for index in self.slstm_at)


class xLSTMBlockStack(nn.Module):
    """Blocks in residual order with a final norm; the state of all of them travels as one value.

    >>> stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=64, num_blocks=2, num_heads=4, slstm_at=(1,)))
    >>> y, state = stack(x)                   # x, y (B, S, D): any S
    >>> y_next, state = stack(x_next, state)  # S = 1 is the step: the same call
    """

    def __init__(self, config: xLSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(build_block(config, index) for index in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.embedding_dim, bias=False)

    def initial_state(self, batch_size: int) -> StackState:
        """The state before any input: a tuple with one ``BlockState`` a block, on the stack's device."""
        return tuple(block.initial_state(batch_size) for block in cast("list[xLSTMBlock]", self.blocks))

    def forward(
        self, x: Tensor, state: StackState | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, StackState]:
        """Run the stack over a sequence and return outputs and the state after it.

        Args:
            x: inputs (B, S, D).
            state: where to continue; None is the empty memory.
            resets: bool (B, S); where true, the row forgets everything before it reads that step.

        Returns:
            Outputs (B, S, D), and the state after step S.

        Raises:
            ValueError: shapes do not fit, or ``state`` is another stack's.
        """
        if x.ndim != 3 or x.shape[-1] != self.config.embedding_dim:
            raise ValueError(f"x must be (B, S, embedding_dim = {self.config.embedding_dim}), got {tuple(x.shape)}")
        if state is None:
            state = self.initial_state(len(x))
        if len(state) != len(self.blocks):
            raise ValueError(f"state must hold one entry for each of the {len(self.blocks)} blocks, got {len(state)}")
        after = []
        for block, block_state in zip(self.blocks, state, strict=True):
            x, block_state = block(x, block_state, resets)
            after.append(block_state)
        return self.norm(x), tuple(after)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` to ``folder``; an interrupted save leaves what was there.

        >>> stack.save_pretrained("model/")
        >>> stack = xLSTMBlockStack.from_pretrained("model/", device="cuda")
        """
        save_model(self, self.config, folder)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The stack that ``save_pretrained`` wrote, in evaluation mode.

        Args:
            source: a folder, or the id ``user/name`` of a model on the Hugging Face hub (needs ``huggingface_hub``).
            device: where the weights go; the CPU unless told.
            dtype: what the weights are converted to; None keeps what was saved.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is damaged, of a newer format or of another model; or ``huggingface_hub`` is missing.
        """
        return load_model(cls, xLSTMConfig, source, device=device, dtype=dtype)


def build_block(config: xLSTMConfig, index: int) -> xLSTMBlock:
    """The block at the given place of the stack."""
    if index in config.slstm_blocks:
        return sLSTMBlock(
            config.embedding_dim,
            config.num_heads,
            conv_kernel_size=config.conv_kernel_size,
            ffn_factor=config.ffn_factor,
            ffn_round_to=config.ffn_round_to,
            dropout=config.dropout,
            block_index=index,
            num_blocks=config.num_blocks,
        )
    return mLSTMBlock(
        config.embedding_dim,
        config.num_heads,
        projection_factor=config.projection_factor,
        conv_kernel_size=config.conv_kernel_size,
        qkv_block_size=config.qkv_block_size,
        dropout=config.dropout,
        num_blocks=config.num_blocks,
    )
