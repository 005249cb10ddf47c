"""Time the mLSTM on a CUDA device beside PyTorch's causal attention and, where it is installed, ``mlstm_kernels``.

python kernels/benchmarks/gpu.py [--only A B]

Queries, keys and values are bfloat16, gates float32 with the forget gate near 1. Medians of triton.testing.do_bench,
which clears the cache in between. ``graph`` is the replay of a CUDA graph: the kernels without the host's cost.
"""

import argparse
from collections.abc import Callable

import torch
import triton.testing
from torch import Tensor
from torch.nn import functional as F

from xlstm_kernels import backends, mlstm

SHAPES = {  # B, S, NH, DK, DV
    "A": (256, 128, 4, 32, 32),
    "B": (64, 512, 4, 64, 64),
    "C": (16, 2048, 8, 64, 64),
    "D": (8, 8192, 8, 128, 128),
    "E": (2, 8192, 8, 256, 512),
}
Run = Callable[..., Tensor]  # (q, k, v, i, f) to h


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, triton {triton.__version__}, {torch.cuda.get_device_name()}, {backends()}")
    print(f"\n{'mLSTM, ms':<44}{'forward':>9}{'+ backward':>12}{'graph':>9}{'+ backward':>12}")
    public = public_run()
    for name in arguments.only:
        B, S, NH, DK, DV = SHAPES[name]
        operands = random_operands(B, S, NH, DK, DV)
        shape = f"{name}  B{B} S{S} NH{NH} {DK}/{DV}"
        report(f"{shape}  ours", run_ours, operands)
        report(f"{shape}  attention", run_attention, operands)
        if public is not None:
            report(f"{shape}  mlstm_kernels", public, heads_first(operands))


def random_operands(B: int, S: int, NH: int, DK: int, DV: int) -> list[Tensor]:
    shapes = [(B, S, NH, DK), (B, S, NH, DK), (B, S, NH, DV), (B, S, NH), (B, S, NH)]
    q, k, v, i, f = (torch.randn(shape, device="cuda") for shape in shapes)
    return [x.requires_grad_() for x in (q.bfloat16(), k.bfloat16(), v.bfloat16(), i, f + 4)]


def run_ours(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return mlstm(q, k, v, i, f)[0]


def run_attention(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)


def heads_first(operands: list[Tensor]) -> list[Tensor]:
    """Contiguous (B, NH, S, ...), the layout of the public library."""
    return [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in operands]


def public_run() -> Run | None:
    """The public library's chunkwise kernels, with their own defaults; None where it is not installed."""
    try:
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk
    except ImportError:
        return None

    def run(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        chunk_size = min(128, q.shape[2])
        return mlstm_chunkwise__xl_chunk(q, k, v, i, f, chunk_size=chunk_size, autocast_kernel_dtype=torch.bfloat16)

    return run


def report(name: str, run: Run, operands: list[Tensor]) -> None:
    """Time forward and forward + backward, called and replayed; print ``-`` for what a peer cannot do."""
    dh = torch.randn_like(run(*operands))

    def forward() -> None:
        with torch.no_grad():
            run(*operands)

    def both() -> None:
        torch.autograd.grad(run(*operands), operands, dh, allow_unused=True)

    times = [median_ms(prepare, call) for prepare in (as_it_is, captured) for call in (forward, both)]
    print(
        f"{name:<44}" + "".join(f"{ms:>{width}}" for ms, width in zip(times, (9, 12, 9, 12), strict=True)), flush=True
    )


def as_it_is(call: Callable[[], None]) -> Callable[[], None]:
    return call


def captured(call: Callable[[], None]) -> Callable[[], None]:
    """The replay of ``call`` from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def median_ms(prepare: Callable[[Callable[[], None]], Callable[[], None]], call: Callable[[], None]) -> str:
    try:
        return f"{triton.testing.do_bench(prepare(call), return_mode='median'):.3f}"
    except RuntimeError:
        return "-"


if __name__ == "__main__":
    main()
