"""How the sLSTM's kernels are cut into programs, by head dim and type: fixed, so that only what was tested runs.

Triton is not imported here: whether its kernels take a head is asked before they are.
"""

import functools
from typing import Any, NamedTuple

import torch

ROWS = 8  # of a batch, in a program: the fewer a processor works on, the shorter a step


class Plan(NamedTuple):
    """Of the kernels that go through time."""

    width: int  # the power of two that holds the head dim
    units: int  # of a program; fewer than the width where the recurrent weights outgrow one processor's shared memory
    warps: int
    stages: int  # steps whose inputs are under way at once; 1 where programs wait for each other


class ProductPlan(NamedTuple):
    """Of the matrix product that gives the weights' gradients: a tile, and the rows that it takes at once."""

    out: int
    into: int
    rows: int
    warps: int
    stages: int


# By width: units, warps, stages. In float32 a step back through a head of 1,024 fits into no shared memory.
_HALF = {32: (32, 4, 4), 64: (64, 8, 4), 128: (128, 8, 3), 256: (16, 4, 1), 512: (16, 8, 1), 1024: (16, 8, 1)}
_SINGLE = {32: (32, 4, 3), 64: (64, 8, 2), 128: (32, 8, 1), 256: (16, 8, 1), 512: (8, 8, 1)}


def plan(head_dim: int, single: bool) -> Plan:
    """For one head; ``single`` says that gates or weights are float32."""
    width = _width(head_dim)
    return Plan(width, *(_SINGLE if single else _HALF)[width])


def product_plan(width: int, single: bool) -> ProductPlan:
    if single:
        return ProductPlan(64, min(width, 64), 32, 4, 2)
    return ProductPlan(128, min(width, 128), 32, 4, 4)


def fits(device: torch.device, head_dim: int, single: bool) -> bool:
    """Whether a device has the shared memory for a head, and the processors for programs that wait for each other."""
    if _width(head_dim) not in (_SINGLE if single else _HALF):
        return False
    width, units, *_ = plan(head_dim, single)
    if device.type != "cuda":  # Triton's interpreter runs one program after the other
        return units == width
    recurrent_weights = 4 * width * units * (4 if single else 2)
    processors, shared_memory = _resources(device)
    # What a step holds beside them takes half as much again.
    return 3 * recurrent_weights <= 2 * shared_memory and -(-head_dim // units) <= processors


def num_processors(device: torch.device) -> int:
    """The device's multiprocessors; for Triton's interpreter, any number."""
    return _resources(device)[0] if device.type == "cuda" else 64


@torch.compiler.assume_constant_result  # tracing cannot look
@functools.cache
def _resources(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory for one program."""
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin


def _width(head_dim: int) -> int:
    return max(32, 1 << (head_dim - 1).bit_length())
