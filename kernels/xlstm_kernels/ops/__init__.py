"""The recurrences: one entry function each, with its implementations beneath it."""

from .. import core
from . import triton_backend
from .mlstm import BACKENDS as MLSTM_BACKENDS
from .slstm import BACKENDS as SLSTM_BACKENDS


def backends() -> dict[str, tuple[str, ...]]:
    """The implementations that this installation has, by op, each list in ascending order of preference.

    ``compiled`` is for tensors on the CPU, ``triton`` for those on a CUDA device, and listed where there is one.

    >>> backends()
    {'mlstm': ('native', 'compiled'), 'slstm': ('native', 'compiled')}
    """
    there = {"native": True, "compiled": core.load() is not None, "triton": triton_backend.available()}
    ops = {"mlstm": tuple(MLSTM_BACKENDS), "slstm": tuple(SLSTM_BACKENDS)}
    return {op: tuple(name for name in names if there[name]) for op, names in ops.items()}
