"""A residual stack of xLSTM blocks with a final norm.

Shapes: B batch, S sequence, D embedding dim.
"""

from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import TIREX, check_input, mLSTMBlock, sLSTMBlock, xLSTM7BBlock, xLSTMBlock
from .config import xLSTMConfig
from .layers import residual_norm
from .pretrained import load_model, save_model
from .rows import PaddedRows
from .state import BlockState, StackState, state_leaves


class xLSTMBlockStack(nn.Module):
    """Blocks in residual order with a final norm; the state of all of them travels as one value.

    >>> stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=64, num_blocks=2, num_heads=4, slstm_at=(1,)))
    >>> y, state = stack(x)                   # x, y (B, S, D): any S
    >>> y_next, state = stack(x_next, state)  # S = 1 is the step: the same call
    """

    def __init__(self, config: xLSTMConfig) -> None:
        super().__init__()
        if not isinstance(config, xLSTMConfig):
            raise TypeError(f"config must be an xLSTMConfig, got {type(config).__name__}; a dict goes in as **config")
        self.config = config
        self.blocks = nn.ModuleList(build_block(config, index) for index in range(config.num_blocks))
        self.norm = residual_norm(config.final_norm, config.embedding_dim)

    @property
    def state_size(self) -> int:
        """Numbers that the state holds for each batch row: the N of ``pack_state``, whatever the sequence's length."""
        return sum(leaf.shape[1:].numel() for leaf in state_leaves(self.initial_state(0)))

    def initial_state(self, batch_size: int) -> StackState:
        """The state before any input: a tuple with one ``BlockState`` a block, on the stack's device."""
        return tuple(block.initial_state(batch_size) for block in cast("list[xLSTMBlock]", self.blocks))

    def forward(
        self,
        x: Tensor,
        state: StackState | None = None,
        resets: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        padding: str = "right",
    ) -> tuple[Tensor, StackState]:
        """Run the stack over a sequence and return outputs and the state after it.

        Args:
            x: inputs (B, S, D).
            state: where to continue; None is the empty memory.
            resets: bool (B, S); where true, the row forgets everything before it reads that step.
            lengths: integers (B,) in [0, S], how many steps of each row are real; None is all. The others are padding:
                they may hold anything, NaN too, give outputs of zero and leave the row's state as it is.
            padding: the side on which rows are filled up, ``right`` or ``left``.

        Returns:
            Outputs (B, S, D), and the state after the last step of each row.

        Raises:
            ValueError: shapes do not fit, a length is out of range, or ``state`` is another stack's.
            TypeError: ``x`` is not of the weights' type, ``resets`` not boolean, ``lengths`` not integer, or ``state``
                not one that a stack returned.
        """
        check_input(x, self.norm)
        if state is None:
            state = self.initial_state(x.shape[0])  # len() would fix B in a trace
        check_stack_state(state, len(self.blocks))
        if lengths is None:
            return self._run(x, state, resets, None)
        rows = PaddedRows.of(x, lengths, padding)
        resets = None if resets is None else rows.enter(resets)
        y, state = self._run(rows.enter(x), state, resets, rows.lengths)
        return rows.leave(y), state

    def _run(
        self, x: Tensor, state: StackState, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, StackState]:
        recompute = self.config.checkpoint and self.training and torch.is_grad_enabled()
        after = []
        for block, block_state in zip(self.blocks, state, strict=True):
            if recompute:
                x, block_state = checkpoint(block, x, block_state, resets, lengths, use_reentrant=False)
            else:
                x, block_state = block(x, block_state, resets, lengths)
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


def check_stack_state(state: StackState, num_blocks: int) -> None:
    """Raise TypeError unless ``state`` is a tuple of ``BlockState``, and ValueError unless each block has one."""
    if not isinstance(state, tuple | list) or not all(isinstance(block, BlockState) for block in state):
        raise TypeError(
            f"state must be a tuple of BlockState, as the stack returns it, got {type(state).__name__}; "
            "a packed one is unpacked by unpack_state(packed, like=stack.initial_state(1))"
        )
    if len(state) != num_blocks:
        raise ValueError(f"state must hold one entry for each of the {num_blocks} blocks, got {len(state)}")


def build_block(config: xLSTMConfig, index: int) -> xLSTMBlock:
    """The block at the given place of the stack."""
    if index in config.slstm_blocks:
        return build_slstm_block(config, index)
    return build_mlstm_block(config)


def build_mlstm_block(config: xLSTMConfig) -> xLSTMBlock:
    """An mLSTM block of the config's kind."""
    options = {
        "normalize": config.normalize,
        "input_gate": config.input_gate,
        "dropout": config.dropout,
        "num_blocks": config.num_blocks,
        **given(norm=config.norm, soft_cap=config.gate_soft_cap, input_gate_init=config.input_gate_init),
    }
    if config.mlstm_block == "7b":
        ffn = {"ffn_round_to": config.ffn_round_to, **given(ffn_factor=config.ffn_factor)}
        return xLSTM7BBlock(config.embedding_dim, config.num_heads, **options, **ffn)
    return mLSTMBlock(
        config.embedding_dim,
        config.num_heads,
        projection_factor=config.projection_factor,
        conv_kernel_size=config.conv_kernel_size,
        qkv_block_size=config.qkv_block_size,
        learnable_skip=config.learnable_skip,
        **options,
    )


def build_slstm_block(config: xLSTMConfig, index: int) -> xLSTMBlock:
    """The sLSTM block of the config's kind at the given place."""
    options = {
        "conv_kernel_size": config.conv_kernel_size,
        **(TIREX if config.slstm_block == "tirex" else {}),
        **given(norm=config.norm, ffn_factor=config.ffn_factor),
    }
    return sLSTMBlock(
        config.embedding_dim,
        config.num_heads,
        ffn_round_to=config.ffn_round_to,
        forget_gate=config.forget_gate,
        recurrent_gradient_clip=config.recurrent_gradient_clip,
        recurrent_init=config.recurrent_init,
        dropout=config.dropout,
        block_index=index,
        num_blocks=config.num_blocks,
        **options,
    )


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None; the block's own defaults stand for the others."""
    return {name: value for name, value in options.items() if value is not None}
