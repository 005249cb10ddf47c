"""Time the backbone on the CPU beside torch.nn.LSTM and, where it is installed, the public ``xlstm`` package.

python kernels/benchmarks/cpu.py [--threads 2] [--only stacks layers steps lengths]
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xlstm_kernels import StackStepper, backends, mlstm, slstm, xLSTMBlockStack, xLSTMConfig

DIM = 64
STACKS = {"2 mLSTM": (), "mLSTM + sLSTM": (1,)}
SEQUENCES = [(32, 96), (32, 512), (8, 128)]
LAYERS = [(8, 128, 4, 16), (32, 96, 4, 16), (64, 256, 4, 32), (16, 512, 4, 64)]  # B, S, NH, DH
STEPS = [1, 8, 32]
LENGTHS = [64, 256, 1024, 4096, 16384]
STREAM = 20_000


def main() -> None:
    tables = {"stacks": time_stacks, "layers": time_layers, "steps": time_steps, "lengths": time_lengths}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {backends()}; medians")
    for name in arguments.only:
        tables[name]()


def time_stacks() -> None:
    """Two blocks of width 64, forward and backward."""
    print(f"\n{'stack, d = 64':<26}{'B x S':>10}{'forward ms':>12}{'+ backward':>12}{'of nn.LSTM':>12}{'of xlstm':>10}")
    for B, S in SEQUENCES:
        x = torch.randn(B, S, DIM)
        *_, lstm = report("nn.LSTM, 2 layers", nn.LSTM(DIM, DIM, num_layers=2, batch_first=True), x)
        for name, slstm_at in STACKS.items():
            public = public_stack(S, list(slstm_at))
            theirs = None if public is None else report(f"xlstm: {name}", public, x, lstm, repeats=5)[1]
            ours = xLSTMBlockStack(xLSTMConfig(embedding_dim=DIM, num_blocks=2, slstm_at=slstm_at))
            report(f"ours:  {name}", ours, x, lstm, theirs)


def time_layers() -> None:
    """One recurrence with the projection that feeds it, beside a layer of nn.LSTM of equal width."""
    print(f"\n{'layer':<26}{'B, S, NH, DH':>18}{'forward ms':>12}{'+ backward':>12}{'of nn.LSTM':>12}")
    for B, S, NH, DH in LAYERS:
        x, shape = torch.randn(B, S, NH * DH, requires_grad=True), f"{B}, {S}, {NH}, {DH}"
        *_, lstm = report("nn.LSTM", nn.LSTM(NH * DH, NH * DH, batch_first=True), x, shape=shape)
        report("sLSTM", sLSTMLayer(NH, DH), x, lstm, shape=shape)
        report("mLSTM", mLSTMLayer(NH, DH), x, lstm, shape=shape)


def time_steps() -> None:
    """One step of two blocks without gradients, from a given state."""
    print(f"\n{'step, us':<42}" + "".join(f"{f'B = {B}':>10}" for B in STEPS))
    lstm = nn.LSTM(DIM, DIM, num_layers=2, batch_first=True)
    with torch.no_grad():
        print_steps(
            "nn.LSTM, 2 layers", lambda x, state: lstm(x[:, None], state), lambda B: (torch.zeros(2, B, DIM),) * 2
        )
        for name, slstm_at in STACKS.items():
            public = public_stack(1, list(slstm_at))
            if public is not None:
                print_steps(f"xlstm: {name}", lambda x, state, of=public: of.step(x[:, None], state), lambda B: None)
            stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=DIM, num_blocks=2, slstm_at=slstm_at)).eval()
            print_steps(f"ours:  {name}", lambda x, state, of=stack: of(x[:, None], state), stack.initial_state)
            step = StackStepper(stack)
            print_steps(f"ours:  {name}, StackStepper", step, step.initial_state)


def time_lengths() -> None:
    """What a step costs in sequences of growing length, and what memory a long stream takes."""
    print(f"\n{'us a step, B = 1, with backward':<34}" + "".join(f"{f'S = {S}':>11}" for S in LENGTHS))
    for name, slstm_at in STACKS.items():
        stack = xLSTMBlockStack(xLSTMConfig(embedding_dim=DIM, num_blocks=2, slstm_at=slstm_at))
        print(f"{name:<34}" + "".join(f"{us_per_step(stack, S):>11.2f}" for S in LENGTHS))
    step = StackStepper(stack)
    x, state = torch.randn(1, DIM), step.initial_state(1)
    peaks = []
    for _ in range(2):
        for _ in range(STREAM):
            _, state = step(x, state)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(f"peak memory grew by {peaks[1] - peaks[0]} KiB between step {STREAM:,} and step {2 * STREAM:,} of a stream")


class sLSTMLayer(nn.Module):
    """A dense projection to the gates and the recurrence."""

    def __init__(self, NH: int, DH: int) -> None:
        super().__init__()
        self.project = nn.Linear(NH * DH, 4 * NH * DH)
        self.recurrent_weight = nn.Parameter(torch.randn(4, NH, DH, DH) / DH**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        gates = self.project(x).unflatten(-1, (4, *self.recurrent_weight.shape[1:3]))
        return slstm(gates, self.recurrent_weight)


class mLSTMLayer(nn.Module):
    """A dense projection to queries, keys, values and gates, and the recurrence."""

    def __init__(self, NH: int, DH: int) -> None:
        super().__init__()
        self.NH, self.project = NH, nn.Linear(NH * DH, 3 * NH * DH + 2 * NH)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        D = x.shape[-1]
        *qkv, gates = self.project(x).split([D, D, D, 2 * self.NH], dim=-1)
        return mlstm(*(part.unflatten(-1, (self.NH, -1)) for part in qkv), *gates.chunk(2, dim=-1))


def public_stack(context_length: int, slstm_at: list[int]) -> nn.Module | None:
    """The public package's stack of the same blocks, or None where it is not installed."""
    try:
        import xlstm
    except ImportError:
        return None
    config = xlstm.xLSTMBlockStackConfig(
        mlstm_block=xlstm.mLSTMBlockConfig(mlstm=xlstm.mLSTMLayerConfig(num_heads=4)),
        slstm_block=xlstm.sLSTMBlockConfig(slstm=xlstm.sLSTMLayerConfig(backend="vanilla", num_heads=4)),
        context_length=context_length,
        num_blocks=2,
        embedding_dim=DIM,
        slstm_at=slstm_at,
    )
    return xlstm.xLSTMBlockStack(config)


def report(
    name: str,
    module: nn.Module,
    x: Tensor,
    lstm: float | None = None,
    public: float | None = None,
    *,
    shape: str | None = None,
    repeats: int = 15,
) -> tuple[float, float]:
    """Time forward, and forward + backward; print both and the latter's ratios; return both in ms."""
    with torch.no_grad():
        forward = median_ms(lambda: module(x), repeats=repeats)
    both = median_ms(lambda: differentiate(module, x), repeats=repeats)
    ratios = "".join(f"{both / of:>{width}.2f}" for of, width in ((lstm, 12), (public, 10)) if of is not None)
    shape, width = (shape, 18) if shape else (f"{len(x)} x {x.shape[1]}", 10)
    print(f"{name:<26}{shape:>{width}}{forward:>12.2f}{both:>12.2f}{ratios}", flush=True)
    return forward, both


def print_steps(
    name: str, step: Callable[[Tensor, Any], tuple[Tensor, Any]], initial_state: Callable[[int], Any]
) -> None:
    """Time ``step(x, state)`` from the state after a first step."""
    times = []
    for B in STEPS:
        x = torch.randn(B, DIM)
        _, state = step(x, initial_state(B))
        times.append(1e3 * median_ms(partial(step, x, state), repeats=500))
    print(f"{name:<42}" + "".join(f"{us:>10.1f}" for us in times), flush=True)


def us_per_step(stack: nn.Module, length: int) -> float:
    """Forward and backward over one row, divided by its length: constant where the cost is linear."""
    x = torch.randn(1, length, DIM)
    return 1e3 * median_ms(lambda: differentiate(stack, x), repeats=5) / length


def differentiate(module: nn.Module, x: Tensor) -> None:
    y = module(x)
    (y[0] if isinstance(y, tuple) else y).sum().backward()


def median_ms(run: Callable[[], object], *, repeats: int = 15) -> float:
    """The median over ``repeats`` runs after two to warm up."""
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


if __name__ == "__main__":
    main()
