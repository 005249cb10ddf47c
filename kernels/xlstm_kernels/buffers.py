"""Large tensors from blocks that have been used before, whose pages the system need not hand out and clear again.

To touch a tape of tens of megabytes for the first time takes longer than the kernel that writes it. Allocators keep
what is small; beyond that each tensor is mapped and unmapped. So the blocks that such tensors leave behind are kept
here, up to a limit, and given to the next one that they fit.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

LARGE = 16 << 20  # bytes; the C library keeps smaller blocks by itself
KEPT = 256 << 20  # bytes that are kept at most
WASTE = 1.5  # how much larger than asked for a block may be

_idle: dict[int, np.ndarray] = {}  # blocks that no tensor uses, by identity: taking one out is a single, atomic step


class _Lease:
    """Keeps a block in use for as long as a tensor over it lives."""

    def __init__(self, block: np.ndarray) -> None:
        self.block = block
        self.__array_interface__ = block.__array_interface__

    def __del__(self, idle: dict[int, np.ndarray] = _idle) -> None:  # bound now: at exit the module may be gone
        if self.block.nbytes + sum(block.nbytes for block in list(idle.values())) <= KEPT:
            idle[id(self.block)] = self.block


def empty(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """An uninitialised float32 tensor where ``like`` is; tracing's stand-in for one if ``like`` is one."""
    numbers = math.prod(shape)
    is_traced = not isinstance(numbers, int)  # to compare it would fix the size
    if is_traced or 4 * numbers < LARGE or like.device.type != "cpu" or is_fake(like):
        return like.new_empty(shape, dtype=torch.float32)
    block = _idle_block(4 * numbers)
    lease = _Lease(np.empty(numbers, dtype=np.float32) if block is None else block)
    return torch.from_numpy(np.asarray(lease)[:numbers]).view(*shape)


def _idle_block(size: int) -> np.ndarray | None:
    for key, block in list(_idle.items()):
        if size <= block.nbytes <= WASTE * size and _idle.pop(key, None) is not None:
            return block
    return None
