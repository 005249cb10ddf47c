"""Time the mLSTM on a CUDA device beside PyTorch's causal attention and, where it is installed, ``mlstm_kernels``.

python kernels/benchmarks/gpu.py [--only A B] [--dtype float32]

Queries, keys and values are bfloat16 unless said otherwise, gates float32 with the forget gate near 1. Medians, the
cache cleared in between.
``in a graph`` is the replay of a CUDA graph: the kernels one after the other, without the host's cost.
``pip install --no-deps mlstm_kernels einops`` brings the peer, whose gradients leave the denominator's share out.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import triton
from timing import COPY_BYTES, PRODUCT_OPERATIONS, milliseconds, replay
from torch import Tensor
from torch.nn import functional as F

from xlstm_kernels import mlstm

SHAPES = {  # B, S, NH, DK, DV
    "A": (256, 128, 4, 32, 32),
    "B": (64, 512, 4, 64, 64),
    "C": (16, 2048, 8, 64, 64),
    "D": (8, 8192, 8, 128, 128),
    "E": (2, 8192, 8, 256, 512),
}
CHUNK = 64  # of the floor's operations
Run = Callable[..., Tensor]  # (q, k, v, i, f) to h


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(f"{versions}, {torch.cuda.get_device_name()}; {arguments.dtype}, medians")
    for name in arguments.only:
        B, S, NH, DK, DV = SHAPES[name]
        operands = random_operands(B, S, NH, DK, DV, getattr(torch, arguments.dtype))
        print(f"\n{f'{name}: B {B}, S {S}, {NH} heads of {DK} / {DV}':<44}{'forward ms':>12}{'+ backward':>12}")
        print_row("floor, bfloat16", floor(SHAPES[name], backward=False), floor(SHAPES[name], backward=True))
        report("ours, in a graph", run_ours, operands, captured=True)
        report("ours, through autograd", run_ours, operands)
        report("causal attention, through autograd", run_attention, operands)
        for peer, run in public_runs(S).items():
            report(f"{peer}, through autograd", run, heads_first(operands))


def random_operands(B: int, S: int, NH: int, DK: int, DV: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(B, S, NH, DK), (B, S, NH, DK), (B, S, NH, DV), (B, S, NH), (B, S, NH)]
    q, k, v, i, f = (torch.randn(shape, device="cuda") for shape in shapes)
    return [x.requires_grad_() for x in (q.to(dtype), k.to(dtype), v.to(dtype), i, f + 4)]


def floor(shape: tuple[int, ...], *, backward: bool) -> float:
    """Milliseconds for its bytes or its operations alone, whichever take longer.

    Forward reads q, k, v and writes h; backward reads them and dh once more, h too, and writes three gradients. A step
    multiplies q and k with the memory and with the others of its chunk; backward twice that.
    """
    B, S, NH, DK, DV = shape
    steps = B * S * NH
    numbers = 2 * DK + 2 * DV + (4 * DK + 4 * DV if backward else 0)
    operations = (4 * DK * DV + CHUNK * (DK + DV)) * (3 if backward else 1)
    return 1e3 * max(2 * steps * numbers / COPY_BYTES, steps * operations / PRODUCT_OPERATIONS)


def run_ours(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return mlstm(q, k, v, i, f)[0]


def run_attention(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)


def heads_first(operands: list[Tensor]) -> list[Tensor]:
    """Contiguous (B, NH, S, ...), the layout of the public library."""
    return [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in operands]


def public_runs(S: int) -> dict[str, Run]:
    """The public library's chunkwise kernels in the type and the chunks that suit them; none where it is missing."""
    try:
        from mlstm_kernels.torch import get_mlstm_kernel
    except ImportError:
        return {}
    sizes = {"chunkwise--triton_xl_chunk": min(128, S), "chunkwise--triton_limit_chunk": 64}
    return {
        f"mlstm_kernels {name.split('_', 1)[1]}": partial(
            get_mlstm_kernel(name), chunk_size=size, autocast_kernel_dtype=torch.bfloat16
        )
        for name, size in sizes.items()
    }


def report(name: str, run: Run, operands: list[Tensor], *, captured: bool = False) -> None:
    """Time forward and forward + backward; print why there is no time of what a peer cannot do."""

    def inference() -> None:
        with torch.no_grad():
            run(*operands)

    try:
        dh = torch.randn_like(run(*operands))

        def training() -> None:
            torch.autograd.grad(run(*operands), operands, dh, allow_unused=True)

        calls = [replay(call) if captured else call for call in (inference, training)]
        print_row(name, *map(milliseconds, calls))
    except (RuntimeError, ValueError, AssertionError, triton.runtime.errors.OutOfResources) as error:
        print(f"{name:<44}  {type(error).__name__}: {str(error).splitlines()[0][:60]}")


def print_row(name: str, forward: float, both: float) -> None:
    print(f"{name:<44}{forward:>12.3f}{both:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
