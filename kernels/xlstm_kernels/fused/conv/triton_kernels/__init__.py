"""The causal convolution, SiLU and what an mLSTM reads off them on a GPU, forwards and backwards.

A tile is BT steps by BC channels. Steps are counted through all rows, so that a step of many rows fills a tile as well
as many steps of one. Headwise maps are products with a tile of the block-diagonal matrix: CHANNELS of the BC channels
are used, as many as whole blocks fill. The gates read q, k and v by one matrix more; as these are linear in the
convolution's output and in x, a program first multiplies the matrices, so that the gates read those themselves: nothing
waits for q, k and v forwards, or computes them again backwards.

B, S and strides are run-time numbers, for none of whose values a kernel is compiled. Shapes: N = B S steps, E channels,
K convolution kernel size, GATES the gates' number 2 NH, padded.
"""

from .backward import conv_backward_inputs, conv_backward_steps, weights_backward
from .forward import conv_forward, gates_forward

__all__ = ["conv_backward_inputs", "conv_backward_steps", "conv_forward", "gates_forward", "weights_backward"]
