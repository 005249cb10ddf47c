"""The recurrences: one entry function each, with its implementations beneath it."""

import torch

from .. import core
from .mlstm import BACKENDS as MLSTM_BACKENDS
from .mlstm import triton_serves
from .slstm import BACKENDS as SLSTM_BACKENDS


def backends() -> dict[str, tuple[str, ...]]:
    """The implementations that this installation has, by op, each list in ascending order of preference.

    ``compiled`` is for tensors on the CPU, ``triton`` for those on a CUDA device, and listed where there is one.

    >>> backends()
    {'mlstm': ('native', 'compiled'), 'slstm': ('native', 'compiled')}
    """
    missing = set() if core.load() else {"compiled"}
    if not triton_serves("cuda" if torch.cuda.is_available() else "cpu"):
        missing.add("triton")
    ops = {"mlstm": tuple(MLSTM_BACKENDS), "slstm": tuple(SLSTM_BACKENDS)}
    return {op: tuple(name for name in names if name not in missing) for op, names in ops.items()}
