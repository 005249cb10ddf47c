"""How the mLSTM's work is cut on a GPU: a fixed table by the width of a head, so that only what was tested runs."""

from dataclasses import dataclass, replace

import torch

SMALLEST_TILE = 16  # of a matrix product in Triton
MANY = 2048  # steps whose gates fit the registers of four warps
FEW_HEADS, LONG = 66, 2048  # walks of fewer heads over more steps leave most of a device idle


@dataclass(frozen=True)
class Tiles:
    """What a program of one kernel has at once: powers of two, cut down to the head where that is narrower."""

    keys: int
    values: int
    warps: int
    stages: int = 1
    rows: int = 64  # steps
    out: int = 0  # of a role's gradient, keys or values


@dataclass(frozen=True)
class Plan:
    """The kernels that run, with their tiles, the size of chunks, and of how many steps the gates are held at once.

    Forward is one launch, ``walk``, or ``states`` and ``outputs``, which take all chunks at once. Backward is
    ``backward_states`` and then ``chunks``, programs with all gradients of a chunk, or ``roles``, with one each.
    """

    chunk: int
    backward_states: Tiles
    gates: int = MANY
    walk: Tiles | None = None
    states: Tiles | None = None
    outputs: Tiles | None = None
    chunks: Tiles | None = None
    roles: Tiles | None = None

    def cut(self, chunk: int) -> "Plan":
        """The same with chunks of another size."""
        tiles = {name: getattr(self, name) for name in ("outputs", "roles")}
        shorter = {name: replace(x, rows=min(x.rows, chunk)) for name, x in tiles.items() if x is not None}
        return replace(self, chunk=chunk, **shorter)


def _narrow(chunk: int, tiles: Tiles, gates: int = 512) -> Plan:
    return Plan(chunk, tiles, gates, walk=tiles, chunks=replace(tiles, stages=min(tiles.stages, 2)))


# By the wider head dim, padded: registers without spills come first, then two programs on a multiprocessor. Four warps
# are a tile of the tensor cores; eight split it, and lose. From 128 on the memory of a head outgrows a program: a walk
# over tiles of it is short once the gates are known, and all else runs in parallel.
_HALF = {
    16: _narrow(32, Tiles(16, 16, 1, 3), gates=128),
    32: _narrow(32, Tiles(32, 32, 1, 3), gates=128),
    64: _narrow(64, Tiles(64, 64, 4, 3), gates=MANY),
    128: Plan(
        128,
        states=Tiles(64, 64, 4, 3),
        outputs=Tiles(128, 128, 4),
        backward_states=Tiles(64, 64, 4, 2),
        roles=Tiles(64, 64, 4, out=128),
    ),
    256: Plan(
        128,
        states=Tiles(64, 64, 4, 3),
        outputs=Tiles(64, 128, 4, 2),
        backward_states=Tiles(64, 64, 4, 2),
        roles=Tiles(64, 64, 4, out=128),
    ),
}
_HALF[512] = replace(_HALF[256], roles=Tiles(64, 64, 4, out=64))  # measured: NOTES.md
# Products of float32 run without tensor cores, and hold their operands in registers.
_SINGLE = {
    16: _narrow(32, Tiles(16, 16, 4)),
    32: _narrow(32, Tiles(32, 16, 4)),
    64: _narrow(16, Tiles(64, 32, 4)),
    128: Plan(
        32,
        states=Tiles(16, 16, 4),
        outputs=Tiles(32, 32, 4, rows=16),
        backward_states=Tiles(16, 16, 4),
        roles=Tiles(32, 32, 4, rows=16, out=32),
    ),
}


def tile(size: int, largest: int) -> int:
    """The power of two that holds ``size``, at least what a product takes and at most ``largest``."""
    return min(max(1 << (size - 1).bit_length(), SMALLEST_TILE), largest)


def few_and_long(heads: int, steps: int) -> bool:
    """Whether B * NH ``heads`` of S ``steps`` have too few walks to fill a device."""
    return heads <= FEW_HEADS and steps >= LONG


def plan(DK: int, DV: int, operand: torch.dtype, few: bool, chunk_size: int | None) -> Plan:
    """The plan for heads of these widths, ``few_and_long`` or not; matrix products have operands of this type."""
    table = _HALF if operand == torch.bfloat16 else _SINGLE
    chosen = table[tile(max(DK, DV), max(table))]
    if few and chosen.walk is not None:
        tiles = replace(chosen.walk, warps=4, rows=chosen.chunk)
        chosen = replace(chosen, walk=None, states=tiles, outputs=tiles, gates=MANY)
    if chunk_size is not None:
        chosen = chosen.cut(tile(chunk_size, 64 if chosen.walk is not None else chosen.chunk))
    return chosen
