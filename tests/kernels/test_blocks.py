"""Each kind of block against its equations, written out with the ops."""

import torch
from torch.nn import functional as F

from tests.kernels.stacks import double, perturb
from xlstm_kernels import TIREX, mlstm, mLSTMBlock, slstm, sLSTMBlock, xLSTM7BBlock


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (2, -1))


def head_norm(h: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=eps).flatten(-2) * weight


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def swiglu(x: torch.Tensor, ffn: torch.nn.Module) -> torch.Tensor:
    gate, up = (x @ ffn.up.weight.t()).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up) @ ffn.down.weight.t()


def test_the_block_of_xlstm_7b_follows_its_equations() -> None:
    torch.manual_seed(0)
    block, x = perturb(xLSTM7BBlock(16, 2).double()), 3 * double(2, 7, 16)
    u = rms(x, block.norm.weight)
    q, k, v, o = (u @ layer.weight.t() for layer in (block.q, block.k, block.v, block.o))
    capped = 15 * torch.tanh((u @ block.cell.gates.weight.t() + block.cell.gates.bias) / 15)
    h, _ = mlstm(heads(q), heads(k), heads(v), *capped.chunk(2, dim=-1))
    expected = x + (torch.sigmoid(o) * head_norm(h, block.cell.norm.weight, 1e-6)) @ block.down.weight.t()
    expected = expected + swiglu(rms(expected, block.ffn_norm.weight), block.ffn)
    torch.testing.assert_close(block(x)[0], expected)


def test_the_block_of_tirex_follows_its_equations() -> None:
    torch.manual_seed(0)
    block, x = perturb(sLSTMBlock(16, 2, **TIREX).double()), double(2, 7, 16)
    u = heads(rms(x, block.norm.weight))
    gates = torch.einsum("bsni,gnoi->bsgno", u, block.cell.input_weight)
    h, _ = slstm(gates, block.cell.recurrent_weight, block.cell.bias)
    expected = x + head_norm(h, block.cell.norm.weight, 1e-5)
    expected = expected + swiglu(rms(expected, block.ffn_norm.weight), block.ffn)
    torch.testing.assert_close(block(x)[0], expected)


def test_the_papers_mlstm_block_without_its_convolution_and_skip_gates_the_memory_alone() -> None:
    torch.manual_seed(0)
    block = perturb(mLSTMBlock(16, 2, conv_kernel_size=0, learnable_skip=False).double())
    x = double(2, 7, 16)
    inner, gate = (F.layer_norm(x, (16,)) * block.norm.weight @ block.up.weight.t()).chunk(2, dim=-1)
    q, k, v = (inner @ torch.block_diag(*layer.weight).t() for layer in (block.q, block.k, block.v))
    i, f = block.cell.gates(torch.cat([q, k, v], dim=-1)).chunk(2, dim=-1)
    h, _ = mlstm(heads(q), heads(k), heads(v), i, f)
    expected = x + (head_norm(h, block.cell.norm.weight, 1e-5) * F.silu(gate)) @ block.down.weight.t()
    torch.testing.assert_close(block(x)[0], expected)
