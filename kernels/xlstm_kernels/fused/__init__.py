"""The paper's blocks, but for their dense projections, as one call into the C core each, forward and back.

What a call does is the block's own ``mixer``, which serves everywhere else and is what the call is tested against.
"""

from .mlstm import mlstm_mixer
from .mlstm import runs as runs_mlstm
from .slstm import runs as runs_slstm
from .slstm import slstm_mixer

__all__ = ["mlstm_mixer", "runs_mlstm", "runs_slstm", "slstm_mixer"]
