"""The two cells as modules: gate parameters, recurrence and head norm.

Shapes: B batch, S sequence, NH heads, DH head dim, D = NH * DH channels.
"""

import torch
from torch import Tensor, nn

from .init import linspace_forget_bias, power_law_forget_bias, small_init_
from .layers import MultiHeadNorm
from .ops.mlstm import mlstm
from .ops.slstm import slstm
from .state import initial_mlstm_state, initial_slstm_state, mLSTMState, sLSTMState


class mLSTMCell(nn.Module):
    """Matrix memory over given queries, keys and values; input and forget gates read all three."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.gates = nn.Linear(3 * dim, 2 * num_heads)  # i of all heads, then f of all heads
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[:num_heads].normal_(std=0.1)
            self.gates.bias[num_heads:] = linspace_forget_bias(num_heads)
        self.norm = MultiHeadNorm(dim)

    def initial_state(self, batch_size: int) -> mLSTMState:
        """The empty memory, on the cell's device."""
        bias = self.gates.bias
        dtype = torch.promote_types(bias.dtype, torch.float32)
        return initial_mlstm_state(
            batch_size, self.num_heads, self.head_dim, self.head_dim, device=bias.device, dtype=dtype
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, state: mLSTMState | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, mLSTMState]:
        """q, k, v (B, S, D) to the normalised hidden states (B, S, D) and the state after them."""
        i, f = self.gates(torch.cat([q, k, v], dim=-1)).chunk(2, dim=-1)  # (B, S, NH)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in (q, k, v))
        h, state = mlstm(q, k, v, i, f, state, resets=resets)
        return self.norm(h), state


class sLSTMCell(nn.Module):
    """Scalar memory whose heads mix their units through a recurrent weight each."""

    def __init__(self, dim: int, num_heads: int, *, block_index: int = 0, num_blocks: int = 1) -> None:
        super().__init__()
        head_dim = dim // num_heads
        shape = (4, num_heads, head_dim, head_dim)  # [gate i, f, z, o; head; out; in]
        self.num_heads, self.head_dim = num_heads, head_dim
        self.input_weight = nn.Parameter(small_init_(torch.empty(shape), dim))
        self.recurrent_weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(4, num_heads, head_dim))
        with torch.no_grad():
            self.bias[1] = power_law_forget_bias(head_dim, block_index=block_index, num_blocks=num_blocks)
        self.norm = MultiHeadNorm(dim)

    def initial_state(self, batch_size: int) -> sLSTMState:
        """The empty memory, on the cell's device."""
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        return initial_slstm_state(batch_size, self.num_heads, self.head_dim, device=self.bias.device, dtype=dtype)

    def forward(
        self, x_if: Tensor, x_zo: Tensor, state: sLSTMState | None = None, resets: Tensor | None = None
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
        h, state = slstm(gates, self.recurrent_weight, self.bias, state, resets=resets)
        return self.norm(h), state
