"""Every kind of block and option as a small stack, so that each conformance test is written once."""

import torch
from torch import Tensor, nn

from xlstm_kernels import StackState, xLSTMBlockStack, xLSTMConfig
from xlstm_kernels.state import state_leaves

D = 16
STACKS = {
    "mLSTM": {},
    "sLSTM": {"slstm_at": "0:1"},
    "mixed": {"slstm_at": "1:1"},
    "7b": {"mlstm_block": "7b"},
    "TiRex": {"slstm_at": "0:1", "slstm_block": "tirex"},
    "7b and TiRex": {"slstm_at": (0,), "mlstm_block": "7b", "slstm_block": "tirex"},
    "no convolution": {"slstm_at": "1:1", "conv_kernel_size": 0, "learnable_skip": False},
    "RMS norm": {"slstm_at": "1:1", "norm": "rms", "gate_soft_cap": 2.0, "ffn_factor": 1.0},
    "other gates": {"slstm_at": "1:1", "input_gate": "sigmoid", "forget_gate": "exponential"},
    "no normaliser": {"input_gate": "sigmoid", "normalize": False},
    "started otherwise": {"slstm_at": "1:1", "input_gate_init": "closed", "recurrent_init": "uniform"},
    "clipped": {"slstm_at": "1:1", "recurrent_gradient_clip": 0.01},
}


def small_config(**options: object) -> xLSTMConfig:
    return xLSTMConfig(**{"embedding_dim": D, "num_blocks": 2, "num_heads": 2, **options})


def random_stack(**options: object) -> xLSTMBlockStack:
    """In float64, away from the zeros that the initialisation starts from."""
    torch.manual_seed(0)
    return perturb(xLSTMBlockStack(small_config(**options)).double())


def perturb(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def random_resets(*shape: int) -> Tensor:
    return torch.rand(*shape) < 0.1


def assert_states_close(actual: StackState, expected: StackState) -> None:
    for a, e in zip(state_leaves(actual), state_leaves(expected), strict=True):
        torch.testing.assert_close(a, e)


def gradients(outputs: Tensor, state: StackState, inputs: list[Tensor]) -> list[Tensor]:
    """Of a random linear function of the outputs and of all in the state that has a gradient."""
    probe = torch.Generator().manual_seed(1)
    parts = [outputs, *(leaf for leaf in state_leaves(state) if leaf.requires_grad)]
    loss = sum((x * torch.randn(x.shape, generator=probe, dtype=x.dtype)).sum() for x in parts)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def assert_all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
