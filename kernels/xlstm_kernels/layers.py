"""The layers around the recurrences: causal convolution, headwise linear map, norms, gated FFN.

Shapes: B batch, S sequence, D channels, K kernel size, NH heads, DH head dim.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused
from .checks import check_choice
from .init import output_init_, small_init_

NORMS = ("layer", "rms")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu}


class CausalConv(nn.Module):
    """Depthwise convolution over the last ``kernel_size`` steps, with the window carried from call to call."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        bound = 1 / math.sqrt(kernel_size)  # torch's default for convolutions
        self.weight = nn.Parameter(torch.empty(kernel_size, dim).uniform_(-bound, bound))  # last row: present step
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    def forward(
        self, x: Tensor, window: Tensor, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, S, D), window (B, K - 1, D): the inputs before x. Returns the outputs and the window after x.

        With ``lengths`` (B,), row b ends before step ``lengths[b]``, and so does the window after it.
        """
        return self.convolve(x, window, resets), self.window_after(x, window, resets, lengths)

    def convolve(self, x: Tensor, window: Tensor, resets: Tensor | None) -> Tensor:
        """The outputs (B, S, D)."""
        S, K = x.shape[1], self.kernel_size
        padded = torch.cat([window.to(x.dtype), x], dim=1)  # (B, K - 1 + S, D)
        age = None if resets is None else steps_since_reset(resets, K)
        y: Tensor = self.bias
        for tap in range(K):
            lag, past = K - 1 - tap, padded[:, tap : tap + S]
            if age is not None and lag > 0:
                past = past.masked_fill((age < lag)[..., None], 0.0)  # hides even what is not finite
            y = torch.addcmul(y, past, self.weight[tap])
        return y

    def window_after(self, x: Tensor, window: Tensor, resets: Tensor | None, lengths: Tensor | None = None) -> Tensor:
        """The last K - 1 inputs of each row, (B, K - 1, D)."""
        K = self.kernel_size
        age = None if resets is None else steps_since_reset(resets, K)
        if lengths is None:
            recent = x[:, max(x.shape[1] - (K - 1), 0) :].to(window.dtype)
            after = torch.cat([window[:, recent.shape[1] :], recent], dim=1)
            age_after = None if age is None else age[:, -1:]
        else:
            last = lengths[:, None] + torch.arange(K - 1, device=x.device)  # (B, K - 1), counted from the window on
            after = torch.cat([window, x.to(window.dtype)], dim=1).gather(1, last[..., None].expand(-1, -1, x.shape[2]))
            # An empty row ends before its first step, where no reset has come.
            age_after = None if age is None else F.pad(age, (1, 0), value=K).gather(1, lengths[:, None])
        if age_after is not None:
            # Entry j lies K - 2 - j steps before the last one; the reset that hides it is as many steps back.
            lags = torch.arange(K - 2, -1, -1, device=x.device)
            after = after.masked_fill((age_after < lags)[..., None], 0.0)
        return after


def steps_since_reset(resets: Tensor, limit: int) -> Tensor:
    """For bool (B, S): how many steps ago the row was last reset, (B, S); at least ``limit`` where it never was."""
    step = torch.arange(resets.shape[1], device=resets.device)
    last = torch.where(resets, step, -limit).cummax(dim=1).values
    return step - last


class HeadwiseLinear(nn.Module):
    """Block-diagonal linear map: each block of ``block_size`` channels is mapped onto itself."""

    def __init__(self, dim: int, block_size: int, *, init_dim: int) -> None:
        super().__init__()
        self.num_blocks = dim // block_size
        self.weight = nn.Parameter(small_init_(torch.empty(self.num_blocks, block_size, block_size), init_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        blocks = x.unflatten(-1, (self.num_blocks, -1))
        return torch.einsum("bsni,noi->bsno", blocks, self.weight).flatten(-2)


class MultiHeadNorm(nn.Module):
    """Layer norm within each head, then one weight a channel."""

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, h: Tensor) -> Tensor:
        """(B, S, NH, DH) to (B, S, NH * DH)."""
        if fused.runs_norm(h):
            return fused.norm(h, self.weight, self.eps, dtype=torch.promote_types(h.dtype, self.weight.dtype))
        return F.layer_norm(h, h.shape[-1:], eps=self.eps).flatten(-2) * self.weight


class RMSNorm(nn.Module):
    """x over its root mean square, then one weight a channel; in float32 whatever x is."""

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (F.rms_norm(wide, wide.shape[-1:], eps=self.eps) * self.weight).to(x.dtype)


def residual_norm(norm: str, dim: int) -> nn.LayerNorm | RMSNorm:
    """The norm before a block's mixer and FFN and after a stack: ``layer`` (the paper's) or ``rms`` (xLSTM 7B's)."""
    check_choice("norm", norm, NORMS)
    return RMSNorm(dim) if norm == "rms" else nn.LayerNorm(dim, bias=False)


def normalise(norm: nn.LayerNorm | RMSNorm, x: Tensor) -> Tensor:
    """norm(x) for products to read: on a CUDA device under autocast in their type, which saves writing a wider one."""
    if isinstance(norm, RMSNorm) or not fused.runs_norm(x[..., None, :]):
        return norm(x)
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return fused.norm(x[..., None, :], norm.weight, norm.eps, dtype=dtype)


class GatedFFN(nn.Module):
    """down(activation(gate(x)) * up(x)), with gate and up in one matrix: gated GELU, or SwiGLU by ``silu``."""

    def __init__(self, dim: int, hidden_dim: int, *, num_blocks: int, activation: str = "gelu") -> None:
        super().__init__()
        check_choice("ffn_activation", activation, ACTIVATIONS)
        self.activation = activation
        self.up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)
        small_init_(self.up.weight.data, dim)
        output_init_(self.down.weight.data, dim, num_blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(ACTIVATIONS[self.activation](gate) * up)
