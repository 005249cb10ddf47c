"""The paper's blocks in few calls: on a CPU one into the C core, forward and back, for all of the mLSTM's block and for
the sLSTM's mixer; on a CUDA device Triton's kernels for what lies before the memory and for what follows it.

What they do is the blocks' own text, which serves everywhere else and is what they are tested against.
"""

from .conv import conv
from .conv import runs as runs_conv
from .mlstm import mlstm_block, mLSTMWeights
from .mlstm import runs as runs_mlstm
from .norm import norm
from .norm import runs as runs_norm
from .slstm import runs as runs_slstm
from .slstm import slstm_mixer
from .split_linear import split_linear
from .tanh_mlp import TanhStepper, tanh_mlps

__all__ = [
    "TanhStepper",
    "conv",
    "mLSTMWeights",
    "mlstm_block",
    "norm",
    "runs_conv",
    "runs_mlstm",
    "runs_norm",
    "runs_slstm",
    "slstm_mixer",
    "split_linear",
    "tanh_mlps",
]
