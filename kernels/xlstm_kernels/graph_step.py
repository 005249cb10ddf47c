"""A step captured in a CUDA graph: one replay instead of hundreds of launches, with the state kept on the device.

Shapes: B batch, D embedding dim, N numbers of state a row.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class GraphStep:
    """A step of packed states, captured once for each batch size and type that it is called with, then replayed.

    Inside a capture of the caller's own it runs as it is, and becomes a part of that.

    Args:
        step: from x (B, D), state (B, N) and resets (B,) or None to outputs and the state after them, without
            gradients and without waiting for the device.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.captured: dict[Hashable, _Capture] = {}

    def __call__(self, x: Tensor, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.cuda.is_current_stream_capturing():
            return self.step(x, state, torch.zeros_like(x[:, 0], dtype=torch.bool) if resets is None else resets)
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (len(x), x.dtype, state.dtype, half)
        if key not in self.captured:
            self.captured[key] = _Capture(self.step, x, state, half)
        return self.captured[key](x, state, resets)


class _Capture:
    """The graph for one batch size with the buffers that it reads and writes; the state stays in its own."""

    def __init__(self, step: Step, x: Tensor, state: Tensor, half: torch.dtype | None) -> None:
        with torch.inference_mode(False):  # what is made inside could not be written to outside
            self.x, self.state = x.detach().clone(), state.detach().clone()
            self.resets = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.resets_set = False
        self.last: Tensor | None = None  # the state that was returned last, and how often it had been written to
        self.last_version = 0
        self.graph = torch.cuda.CUDAGraph()
        # Weights that autocast has converted must not outlive the graph's own memory.
        with torch.cuda.device_of(x), torch.autocast("cuda", half, enabled=half is not None, cache_enabled=False):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step(self.x, self.state, self.resets)  # compiles kernels and chooses algorithms
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph):
                self.y, after = step(self.x, self.state, self.resets)
                self.state.copy_(after)

    def __call__(self, x: Tensor, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        self.x.copy_(x)
        if self.last is None or state is not self.last or state._version != self.last_version:
            self.state.copy_(state)
        if resets is not None:
            self.resets.copy_(resets)
        elif self.resets_set:
            self.resets.zero_()
        self.resets_set = resets is not None
        with torch.cuda.device_of(x):
            self.graph.replay()
        after = self.state.clone()  # the caller's own: states are values
        if not after.is_inference():  # those do not count how often they were written to
            self.last, self.last_version = after, after._version
        return self.y.clone(), after
