"""Models and carried states of the public ``xlstm`` package as ours, told by names and shapes alone.

Nothing here imports that package.
"""

from .xlstm import from_xlstm, state_from_xlstm
from .xlstm_large import from_xlstm_large, state_from_xlstm_large

__all__ = ["from_xlstm", "from_xlstm_large", "state_from_xlstm", "state_from_xlstm_large"]
