"""What holds for every test: one thread, so that results repeat and small tensors are not slowed by hand-overs.

Where there is no CUDA device, Triton's kernels run in Triton's interpreter, if Triton is installed at all.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

torch.set_num_threads(1)
