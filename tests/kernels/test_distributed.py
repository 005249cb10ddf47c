"""Data-parallel training: two processes with half of the batch each get the gradients of one with all of it."""

from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from xlstm_kernels import detach_state, xLSTMBlockStack, xLSTMConfig

PROCESSES, B, S, D = 2, 4, 12, 16


def example() -> tuple[xLSTMBlockStack, Tensor, Tensor]:
    """The same stack, inputs and resets in every process."""
    torch.manual_seed(0)
    stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=D, num_blocks=2, num_heads=2, slstm_at=(1,)))
    return stack, torch.randn(B, 2 * S, D), torch.rand(B, 2 * S) < 0.1


def accumulate_gradients(model: torch.nn.Module, x: Tensor, resets: Tensor) -> None:
    """Two pieces of truncated back-propagation, the second from the state that the first ended in."""
    state = None
    for piece in (slice(0, S), slice(S, 2 * S)):
        y, state = model(x[:, piece], state, resets[:, piece])
        y.square().mean().backward()
        state = detach_state(state)


def train_on_share(rank: int, folder: Path) -> None:
    """What each process does; the first writes its gradients."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    stack, x, resets = example()
    accumulate_gradients(DistributedDataParallel(stack), x[rank::PROCESSES], resets[rank::PROCESSES])
    if rank == 0:
        torch.save({name: p.grad for name, p in stack.named_parameters()}, folder / "gradients.pt")
    distributed.barrier()  # a process that leaves early takes the other's connection with it
    distributed.destroy_process_group()


def test_two_processes_get_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(train_on_share, (tmp_path,), nprocs=PROCESSES)
    stack, x, resets = example()
    accumulate_gradients(stack, x, resets)
    gradients = torch.load(tmp_path / "gradients.pt")
    assert gradients.keys() == dict(stack.named_parameters()).keys()
    for name, parameter in stack.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
