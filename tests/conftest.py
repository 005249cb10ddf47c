"""What holds for every test: one thread, so that results repeat and small tensors are not slowed by hand-overs."""

import torch

torch.set_num_threads(1)
