"""The sLSTM's kernels in Triton: the loops over time in both directions, and the gradients of the weights."""

from .backward import slstm_backward
from .forward import slstm_forward
from .weights import slstm_weight_parts, slstm_weight_sum

__all__ = ["slstm_backward", "slstm_forward", "slstm_weight_parts", "slstm_weight_sum"]
