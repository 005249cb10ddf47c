"""Time the stack on the CPU beside torch.nn.LSTM of equal width and depth.

python kernels/benchmarks/cpu.py [--threads 2]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from xlstm_kernels import xLSTMBlockStack, xLSTMConfig

STACKS = {"2 mLSTM": (), "mLSTM + sLSTM": (1,)}
SEQUENCES = [(32, 96), (32, 512), (8, 128)]
STEPS = [1, 8, 32]
LENGTHS = [64, 256, 1024, 4096, 16384]
DIM = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    lstm = nn.LSTM(DIM, DIM, num_layers=2, batch_first=True)
    stacks = {
        name: xLSTMBlockStack(xLSTMConfig(embedding_dim=DIM, num_blocks=2, slstm_at=slstm_at))
        for name, slstm_at in STACKS.items()
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, d = {DIM}, medians in ms\n")
    print(f"{'stack':<14} {'B x S':>10} {'forward':>9} {'+ backward':>11} {'of nn.LSTM':>11}")
    for batch_size, length in SEQUENCES:
        x = torch.randn(batch_size, length, DIM)
        *_, lstm_both = report("nn.LSTM", lstm, x, None)
        for name, stack in stacks.items():
            report(name, stack, x, lstm_both)

    print(f"\n{'step of':<14} " + " ".join(f"B = {batch_size:<6}" for batch_size in STEPS) + "  (us)")
    with torch.inference_mode():
        hidden = {b: (torch.zeros(2, b, DIM), torch.zeros(2, b, DIM)) for b in STEPS}
        print_steps("nn.LSTM", lambda x: lstm(x, hidden[len(x)]))
        for name, stack in stacks.items():
            states = {b: stack.initial_state(b) for b in STEPS}
            print_steps(name, lambda x, stack=stack, states=states: stack(x, states[len(x)]))

    print(f"\n{'a step of':<14} " + " ".join(f"S = {length:<6}" for length in LENGTHS) + "  (us, B = 1, with backward)")
    for name, stack in stacks.items():
        print(f"{name:<14} " + " ".join(f"{us_per_step(stack, length):<10.1f}" for length in LENGTHS))


def report(name: str, module: nn.Module, x: torch.Tensor, lstm_both: float | None) -> tuple[float, float]:
    """Time forward, and forward + backward; print and return both in ms."""
    with torch.no_grad():
        forward = median_ms(lambda: module(x))
    both = median_ms(lambda: differentiate(module, x))
    ratio = "" if lstm_both is None else f"{both / lstm_both:>10.2f}x"
    print(f"{name:<14} {f'{len(x)} x {x.shape[1]}':>10} {forward:>9.2f} {both:>11.2f} {ratio}")
    return forward, both


def us_per_step(stack: nn.Module, length: int) -> float:
    """Forward and backward over one row, divided by its length: constant where the cost is linear."""
    x = torch.randn(1, length, DIM)
    return 1e3 * median_ms(lambda: differentiate(stack, x), repeats=3) / length


def print_steps(name: str, step: Callable[[torch.Tensor], object]) -> None:
    times = [1e3 * median_ms(partial(step, torch.randn(b, 1, DIM)), repeats=300) for b in STEPS]
    print(f"{name:<14} " + " ".join(f"{us:<10.1f}" for us in times))


def differentiate(module: nn.Module, x: torch.Tensor) -> None:
    module(x)[0].sum().backward()


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
