"""The two cells as modules: gate parameters, recurrence and head norm.

Shapes: B batch, S sequence, NH heads, DH head dim, D = NH * DH channels, G channels that an mLSTM's gates read.
"""

import torch
from torch import Tensor, nn

from .init import (
    head_norm_eps,
    input_gate_bias,
    linspace_forget_bias,
    power_law_forget_bias,
    recurrent_init_,
    small_init_,
)
from .layers import MultiHeadNorm
from .ops.mlstm import mlstm
from .ops.slstm import slstm
from .state import initial_mlstm_state, initial_slstm_state, mLSTMState, sLSTMState


class mLSTMCell(nn.Module):
    """Matrix memory over given queries, keys and values; input and forget gates read all three, or what they are given.

    Args:
        dim: channels D of values and outputs.
        num_heads: heads; must divide D and ``qk_dim``.
        qk_dim: channels of queries and keys; None is D.
        gate_dim: channels of ``gate_input``; None is for gates that read queries, keys and values.
        input_gate, normalize, soft_cap: as in ``mlstm``.
        input_gate_init: start of the input gate's bias, ``normal`` or ``closed``; the head norm's epsilon follows it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qk_dim: int | None = None,
        gate_dim: int | None = None,
        input_gate: str = "exponential",
        normalize: bool = True,
        soft_cap: float | None = None,
        input_gate_init: str = "normal",
    ) -> None:
        super().__init__()
        qk_dim = dim if qk_dim is None else qk_dim
        gate_dim = 2 * qk_dim + dim if gate_dim is None else gate_dim
        self.dim, self.num_heads = dim, num_heads
        self.qk_head_dim, self.head_dim = qk_dim // num_heads, dim // num_heads
        self.input_gate, self.normalize, self.soft_cap = input_gate, normalize, soft_cap
        self.gates = nn.Linear(gate_dim, 2 * num_heads)  # i of all heads, then f of all heads
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[:num_heads] = input_gate_bias(num_heads, input_gate_init)
            self.gates.bias[num_heads:] = linspace_forget_bias(num_heads)
        self.norm = MultiHeadNorm(dim, eps=head_norm_eps(input_gate_init))

    def initial_state(self, batch_size: int) -> mLSTMState:
        """The empty memory, on the cell's device."""
        weight = self.norm.weight  # of a quantised map neither device nor type can be asked
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return initial_mlstm_state(
            batch_size, self.num_heads, self.qk_head_dim, self.head_dim, device=weight.device, dtype=dtype
        )

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: mLSTMState | None = None,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        gate_input: Tensor | None = None,
    ) -> tuple[Tensor, mLSTMState]:
        """q, k, v (B, S, D) and gate_input (B, S, G) to the normalised hidden states (B, S, D) and the state after."""
        gate_input = torch.cat([q, k, v], dim=-1) if gate_input is None else gate_input
        i, f = self.gates(gate_input).chunk(2, dim=-1)  # (B, S, NH)
        h, state = self.remember(q, k, v, i, f, state, resets, lengths)
        return self.norm(h), state

    def remember(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        f: Tensor,
        state: mLSTMState | None,
        resets: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, mLSTMState]:
        """The memory alone, from q, k, v (B, S, D) and i, f (B, S, NH) to the hidden states (B, S, NH, DH)."""
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (q, k, v))
        return mlstm(
            q,
            k,
            v,
            i,
            f,
            state,
            resets=resets,
            lengths=lengths,
            input_gate=self.input_gate,
            normalize=self.normalize,
            soft_cap=self.soft_cap,
        )


class sLSTMCell(nn.Module):
    """Scalar memory whose heads mix their units through a recurrent weight each.

    Args:
        dim: channels D.
        num_heads: heads; must divide D.
        forget_gate, recurrent_gradient_clip: as in ``slstm``.
        recurrent_init: start of the recurrent weight, ``zeros`` or ``uniform``.
        block_index, num_blocks: place in the stack, which sets the forget gate's bias.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        forget_gate: str = "sigmoid",
        recurrent_gradient_clip: float | None = None,
        recurrent_init: str = "zeros",
        block_index: int = 0,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads
        shape = (4, num_heads, head_dim, head_dim)  # [gate i, f, z, o; head; out; in]
        self.dim, self.num_heads, self.head_dim = dim, num_heads, head_dim
        self.forget_gate, self.recurrent_gradient_clip = forget_gate, recurrent_gradient_clip
        self.input_weight = nn.Parameter(small_init_(torch.empty(shape), dim))
        self.recurrent_weight = nn.Parameter(recurrent_init_(torch.empty(shape), recurrent_init))
        self.bias = nn.Parameter(torch.zeros(4, num_heads, head_dim))
        with torch.no_grad():
            self.bias[1] = power_law_forget_bias(head_dim, block_index=block_index, num_blocks=num_blocks)
        self.norm = MultiHeadNorm(dim)

    def initial_state(self, batch_size: int) -> sLSTMState:
        """The empty memory, on the cell's device."""
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        return initial_slstm_state(batch_size, self.num_heads, self.head_dim, device=self.bias.device, dtype=dtype)

    def forward(
        self,
        x_if: Tensor,
        x_zo: Tensor,
        state: sLSTMState | None = None,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, sLSTMState]:
        """What feeds i, f and what feeds z, o, each (B, S, D), to the normalised hidden states and the state."""
        x_if, x_zo = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in (x_if, x_zo))
        gates = torch.cat(
            [
                torch.einsum("bsni,gnoi->bsgno", x_if, self.input_weight[:2]),
                torch.einsum("bsni,gnoi->bsgno", x_zo, self.input_weight[2:]),
            ],
            dim=2,
        )
        h, state = slstm(
            gates,
            self.recurrent_weight,
            self.bias,
            state,
            resets=resets,
            lengths=lengths,
            forget_gate=self.forget_gate,
            recurrent_gradient_clip=self.recurrent_gradient_clip,
        )
        return self.norm(h), state
