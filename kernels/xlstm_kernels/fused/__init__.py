"""The paper's blocks, but for their dense projections: on a CPU as one call into the C core each, forward and back; on
a CUDA device as Triton's kernels for what lies before the memory and for what follows it.

What they do is the blocks' own ``mixer``, which serves everywhere else and is what they are tested against.
"""

from .conv import conv
from .conv import runs as runs_conv
from .mlstm import mlstm_mixer
from .mlstm import runs as runs_mlstm
from .norm import norm
from .norm import runs as runs_norm
from .slstm import runs as runs_slstm
from .slstm import slstm_mixer
from .split_linear import split_linear

__all__ = [
    "conv",
    "mlstm_mixer",
    "norm",
    "runs_conv",
    "runs_mlstm",
    "runs_norm",
    "runs_slstm",
    "slstm_mixer",
    "split_linear",
]
