"""A step of a whole stack as one call into the C core: its weights packed as the core reads them.

Shapes: B batch, D embedding dim, E inner dim, N numbers of state a row.
"""

import ctypes
from typing import cast

import torch
from torch import Tensor, nn

from . import core
from .blocks import is_plain, mLSTMBlock, sLSTMBlock, xLSTMBlock
from .stack import xLSTMBlockStack
from .state import pack_state


def compiles(stack: xLSTMBlockStack) -> bool:
    """Whether the C core has this stack's step."""
    blocks = cast("list[xLSTMBlock]", stack.blocks)
    papers = isinstance(stack.norm, nn.LayerNorm) and all(_is_papers(block) for block in blocks)
    return papers and core.runs(*stack.parameters()) and all(_has_fitting_widths(block) for block in blocks)


def _is_papers(block: xLSTMBlock) -> bool:
    gated_gelu = block.ffn is None or block.ffn.activation == "gelu"
    return block.has_papers_mixer and is_plain(block) and isinstance(block.norm, nn.LayerNorm) and gated_gelu


def _has_fitting_widths(block: xLSTMBlock) -> bool:
    """Whether its widths are multiples of the core's vectors, those of maps and sLSTM heads dividing them also."""
    if isinstance(block, mLSTMBlock):
        size, head_fits = block.q.weight.shape[-1], block.cell.head_dim % core.LANES == 0
    else:
        size, head_fits = block.cell.head_dim, True
    widths_fit = all(width % core.LANES == 0 for width in (block.cell.dim, block.norm.weight.numel()))
    return head_fits and widths_fit and (core.LANES % size == 0 or size % core.LANES == 0)


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("is_slstm", "E", "NH", "DH", "K", "block", "hidden")),
        *((name, ctypes.c_float) for name in ("norm_eps", "head_norm_eps")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("norm", "up", "conv_weight", "conv_bias", "maps", "recurrent", "gate_weight", "gate_bias"),
                *("head_norm", "skip", "down", "ffn_norm", "ffn_up", "ffn_down"),
            )
        ),
    ]


class _Stack(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("D", "num_blocks", "state_floats", "widest")),
        ("norm_eps", ctypes.c_float),
        ("norm", ctypes.c_void_p),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class CompiledStep:
    """Packed copies of all weights, and one call into the C core for a step of all blocks."""

    def __init__(self, stack: xLSTMBlockStack) -> None:
        library = core.load()
        assert library is not None
        self.kept: list[Tensor] = []  # what the pointers below point to
        blocks = [self._block(cast(xLSTMBlock, block)) for block in stack.blocks]
        self.blocks = (_Block * len(blocks))(*blocks)
        dim = stack.config.embedding_dim
        widest = max(max(3 * block.E, 4 * dim, 2 * block.hidden) for block in blocks) + core.LANES
        self.sizes = _Stack(
            dim,
            len(blocks),
            pack_state(stack.initial_state(1)).shape[1],
            widest,
            stack.norm.eps,
            self._keep(stack.norm.weight),
            self.blocks,
        )
        self.run = library.xlstm_step
        self.run.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 5, ctypes.c_int]
        self.address = ctypes.addressof(self.sizes)

    def __call__(self, x: Tensor, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        x, state = core.plain(x), core.plain(state)
        y, after = torch.empty_like(x), torch.empty_like(state)
        resets = None if resets is None else resets.contiguous()
        failed = self.run(
            self.address,
            len(x),
            x.data_ptr(),
            state.data_ptr(),
            None if resets is None else resets.data_ptr(),
            y.data_ptr(),
            after.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("the compiled step could not allocate its working memory")
        return y, after

    def _keep(self, weight: Tensor) -> int:
        weight = weight.detach().float().contiguous().clone()
        self.kept.append(weight)
        return weight.data_ptr()

    def _block(self, block: xLSTMBlock) -> _Block:
        keep = self._keep
        assert block.conv is not None
        shared = {
            "norm": keep(block.norm.weight),
            "norm_eps": block.norm.eps,
            "conv_weight": keep(block.conv.weight),
            "conv_bias": keep(block.conv.bias),
            "head_norm": keep(block.cell.norm.weight),
            "head_norm_eps": block.cell.norm.eps,
            "NH": block.cell.num_heads,
            "DH": block.cell.head_dim,
            "K": block.conv.kernel_size,
        }
        if isinstance(block, mLSTMBlock):
            assert block.skip is not None
            heads = 2 * block.cell.num_heads
            gate_bias = torch.zeros(core.whole(heads))
            gate_bias[:heads] = block.cell.gates.bias.detach()
            return _Block(
                **shared,
                E=block.skip.numel(),
                block=block.q.weight.shape[-1],
                up=keep(panels(block.up.weight.T)),
                maps=keep(torch.stack([map_panels(m.weight) for m in (block.q, block.k, block.v)])),
                gate_weight=keep(panels(block.cell.gates.weight.T)),
                gate_bias=keep(gate_bias),
                skip=keep(block.skip),
                down=keep(panels(block.down.weight.T)),
            )
        assert isinstance(block, sLSTMBlock)
        assert block.ffn is not None
        gate, up = block.ffn.up.weight.T.chunk(2, dim=1)  # (D, hidden)
        return _Block(
            **shared,
            is_slstm=1,
            E=block.conv.weight.shape[1],
            block=block.cell.head_dim,
            hidden=core.whole(gate.shape[1]),
            maps=keep(torch.stack([map_panels(w) for w in block.cell.input_weight])),
            recurrent=keep(torch.stack([map_panels(w) for w in block.cell.recurrent_weight])),
            gate_bias=keep(block.cell.bias),
            ffn_norm=keep(block.ffn_norm.weight),
            ffn_up=keep(torch.cat([panels(gate), panels(up)])),
            ffn_down=keep(panels(_fill(block.ffn.down.weight.T, 0))),
        )


def panels(matrix: Tensor) -> Tensor:
    """(depth, columns) cut into panels of columns, the last filled up with zeros: (panels, depth, PANEL)."""
    return core.to_panels(_fill(matrix, 1))


def map_panels(weight: Tensor) -> Tensor:
    """A block-diagonal map (blocks, out, in) in panels of outputs, each with the inputs that these depend on."""
    count, size, _ = weight.shape
    together = max(core.LANES // size, 1)
    grouped = weight.reshape(count // together, together, size, size)
    dense = weight.new_zeros(count // together, together, size, together, size)  # (groups, block, in, block, out)
    for at in range(together):
        dense[:, at, :, at] = grouped[:, at].mT
    wide = together * size
    return core.to_panels(dense.reshape(-1, wide, wide))


def _fill(matrix: Tensor, dim: int) -> Tensor:
    """Zeros up to a multiple of core.LANES along ``dim``."""
    missing = -matrix.shape[dim] % core.LANES
    shape = list(matrix.shape)
    shape[dim] = missing
    return torch.cat([matrix, matrix.new_zeros(shape)], dim) if missing else matrix
