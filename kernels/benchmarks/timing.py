"""How the GPU benchmarks take a time, and what the device's own limits are taken to be."""

from collections.abc import Callable

import torch
import triton.testing

# Bytes (read and written) a second of a large copy, bfloat16 operations a second of a large product: measured on an
# H200, whose floors the tables print; an H100 copies 3.0e12.
COPY_BYTES, PRODUCT_OPERATIONS = 4.3e12, 790e12


def milliseconds(call: Callable[[], object]) -> float:
    """The median, the cache cleared in between."""
    return triton.testing.do_bench(call, warmup=25, rep=100, return_mode="median")


def replay(call: Callable[[], None]) -> Callable[[], None]:
    """The call captured in a graph; what it compiles and allocates has happened by then."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
