"""What all residual blocks share: the residual stream, the state, and the convolution before a memory.

Shapes: B batch, S sequence, D embedding dim, K convolution kernel size.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from .. import fused
from ..cells import mLSTMCell, sLSTMCell
from ..checks import check_integer
from ..layers import CausalConv, GatedFFN, HeadwiseLinear, MultiHeadNorm, RMSNorm, normalise
from ..ops.checks import check_devices, check_resets, check_shape, check_tensor
from ..ops.registration import autocasts
from ..state import BlockState

PLAIN = frozenset(
    {nn.Linear, nn.LayerNorm, nn.Dropout, CausalConv, HeadwiseLinear, MultiHeadNorm, RMSNorm, GatedFFN}
    | {mLSTMCell, sLSTMCell}
)


def is_plain(module: nn.Module) -> bool:
    """Whether all modules inside do what their weights say: none was replaced or patched, and none has a hook.

    Then code that reads the weights, and calls no module, may stand in for them.
    """
    for child in module._modules.values():
        if child is None:
            continue
        hooks = child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks
        patched = "forward" in child.__dict__  # as libraries do that move or convert weights around a call
        if hooks or patched or type(child) not in PLAIN or (child._modules and not is_plain(child)):
            return False
    return True


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
    """The nearest integer to ``size``, at least 1, rounded up to a multiple."""
    return -(-max(round(size), 1) // multiple) * multiple


def check_input(x: Tensor, norm: nn.LayerNorm | RMSNorm) -> None:
    """Raise ValueError unless ``x`` is (B, S, D), and TypeError unless its type is that of the weights, as ``norm``'s.

    Autocast converts by itself.
    """
    check_tensor("x", x)
    D, dtype = norm.weight.shape[0], norm.weight.dtype
    if x.ndim != 3 or x.shape[-1] != D:
        raise ValueError(f"x must be (B, S, embedding_dim = {D}), got {tuple(x.shape)}")
    if x.dtype != dtype and not (x.is_floating_point() and autocasts(x)):
        raise TypeError(f"x must be {dtype} like the weights, got {x.dtype}; convert x or the weights with .to()")


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
            TypeError: ``x`` is not of the weights' type, ``resets`` not boolean, or the state not this kind of
                block's in float32 (float64 for float64 inputs).
        """
        check_input(x, self.norm)
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
        if not isinstance(state, BlockState):
            raise TypeError(f"state must be a BlockState, as the block returns it, got {type(state).__name__}")
        B, S = x.shape[:2]
        if S == 0:
            raise ValueError(f"the sequence must have at least one step, got x of shape {tuple(x.shape)}")
        window_size = 0 if self.conv is None else self.conv.kernel_size - 1
        check_shape("state.conv", state.conv, (B, window_size, self.cell.dim), "(B, K - 1, channels)")
        check_resets(resets, B, S)
        if lengths is not None:
            check_shape("lengths", lengths, (B,), "(B,)")
        check_devices({"x": x, "state.conv": state.conv, "resets": resets, "lengths": lengths})
