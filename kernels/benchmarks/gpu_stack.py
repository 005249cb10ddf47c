"""Time whole stacks on a CUDA device: beside peers of equal width, step by step, and against the sequence's length.

python kernels/benchmarks/gpu_stack.py [--plot FILE]
"""

import argparse
from collections.abc import Callable, Sequence

import torch
import triton
from timing import COPY_BYTES, PRODUCT_OPERATIONS, milliseconds, replay
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_kernels import StackStepper, xLSTMBlockStack, xLSTMConfig

B, S, D, BLOCKS, HEADS = 32, 2048, 512, 6, 4
TOKENS = B * S
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
STEP_D, STEP_BLOCKS, STEP_BATCHES = 64, 2, (1, 8, 32, 256)
Forward = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="draw the sweep over lengths")
    plot = parser.parse_args().plot
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, triton {triton.__version__}, {torch.cuda.get_device_name()}; medians")
    time_stacks()
    time_steps()
    sweep = time_lengths()
    if plot:
        draw(sweep, plot)


def time_stacks() -> None:
    print(f"\n{BLOCKS} blocks, B {B}, S {S}, d {D}, autocast to bfloat16{'forward ms':>18}{'+ backward':>12}")
    print(f"{'floor of ours':<52}{1e3 * floor(backward=False):>12.2f}{1e3 * floor(backward=True):>12.2f}")
    for name, module in peers().items():
        x = torch.randn(B, S, D, device="cuda", requires_grad=True)
        inference, training = passes(module, x)
        report(name, inference, training)
        if name.startswith("ours"):
            report(f"{name}, in a graph", inference, training, capture=True)


def peers() -> dict[str, nn.Module]:
    """Stacks of equal width and depth; the public package where it is installed."""
    config = xLSTMConfig(embedding_dim=D, num_blocks=BLOCKS, num_heads=HEADS)
    stacks = {
        "ours": First(xLSTMBlockStack(config)),
        "nn.LSTM (cuDNN)": First(nn.LSTM(D, D, BLOCKS, batch_first=True)),
        "Transformer, causal flash attention": nn.Sequential(*(TransformerBlock(D, D // 64) for _ in range(BLOCKS))),
    }
    try:
        from xlstm import mLSTMBlockConfig, mLSTMLayerConfig
        from xlstm import xLSTMBlockStack as PublicStack
        from xlstm import xLSTMBlockStackConfig as PublicConfig
    except ImportError:
        return {name: stack.cuda() for name, stack in stacks.items()}
    block = mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=HEADS))
    public = PublicConfig(mlstm_block=block, context_length=S, num_blocks=BLOCKS, embedding_dim=D, slstm_at=[])
    stacks["xlstm (public)"] = PublicStack(public)
    return {name: stack.cuda() for name, stack in stacks.items()}


class First(nn.Module):
    """The first result of a module that returns several."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


class TransformerBlock(nn.Module):
    """Pre-norm causal attention and a GELU FFN four times as wide."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.ffn_norm = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.ffn_norm(x))))


def floor(*, backward: bool) -> float:
    """Seconds for ours: each tensor once between what can be one kernel, or the operations, whichever is larger.

    A block in bfloat16, tensors of D (float32 residual: 2): the norm reads 2 and writes 1; up reads 1, writes 4; the
    inputs read 2 and write 8; the memory reads 6 and writes 2; norm, skip and gate read 6, write 2; down reads 2,
    writes 1; the residual sum reads 3, writes 2. Backwards: each of these reads its inputs and its outputs' gradients
    and writes its inputs' gradients, and h, the gradient of the convolution's output and dpre travel once more.
    """
    forward_tensors = 3 + 5 + 10 + 8 + 8 + 3 + 5
    backward_tensors = (2 + 2 + 2) + (1 + 4 + 4 + 1) + (2 + 8 + 2 + 4) + (6 + 2 + 2 + 6) + (6 + 2 + 6) + (2 + 1 + 1 + 2)
    inner, head_dim, chunk = 2 * D, 2 * D // HEADS, 64
    products = 2 * D * 3 * inner + 4 * inner * head_dim + 2 * inner * chunk  # projections, memory, scores
    tensors, passes_ = (forward_tensors + backward_tensors, 3) if backward else (forward_tensors, 1)
    return BLOCKS * max(tensors * TOKENS * D * 2 / COPY_BYTES, passes_ * TOKENS * products / PRODUCT_OPERATIONS)


def passes(module: nn.Module, x: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """Inference, and training with gradients of x and all parameters."""
    leaves = [x, *module.parameters()]

    def inference() -> None:
        with torch.no_grad(), autocast():
            module(x)

    def training() -> None:
        with autocast():
            y = module(x)
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return inference, training


def autocast() -> torch.autocast:
    # A graph must not hold on to weights that autocast has converted outside of it.
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=not torch.cuda.is_current_stream_capturing())


def report(name: str, inference: Callable[[], None], training: Callable[[], None], *, capture: bool = False) -> None:
    try:
        if capture:
            inference, training = replay(inference), replay(training)
        print(f"{name:<52}{milliseconds(inference):>12.2f}{milliseconds(training):>12.2f}")
    except (RuntimeError, torch.OutOfMemoryError, ValueError) as error:
        print(f"{name:<52}  {type(error).__name__}: {str(error).splitlines()[0][:60]}")


def time_steps() -> None:
    print(
        f"\na step of {STEP_BLOCKS} blocks, d {STEP_D}, us{'':<26}" + "".join(f"{f'B {b}':>12}" for b in STEP_BATCHES)
    )
    for name, slstm_at in (("2 mLSTM", ()), ("mLSTM + sLSTM", (1,))):
        config = xLSTMConfig(embedding_dim=STEP_D, num_blocks=STEP_BLOCKS, num_heads=4, slstm_at=slstm_at)
        stack = xLSTMBlockStack(config).cuda().eval()
        eager, replayed = [], []
        for batch_size in STEP_BATCHES:
            x, step = torch.randn(batch_size, STEP_D, device="cuda"), StackStepper(stack)
            state, packed = stack.initial_state(batch_size), step.initial_state(batch_size)
            eager.append(microseconds(lambda x=x, s=state, stack=stack: stack(x[:, None], s)))
            holder = [packed]

            def advance(x: Tensor = x, step: StackStepper = step, holder: list[Tensor] = holder) -> None:
                _, holder[0] = step(x, holder[0])

            replayed.append(microseconds(advance))
        for kind, times in (("StackStepper", replayed), ("stack(x, state)", eager)):
            print(f"{f'{name}, {kind}':<52}" + "".join(f"{t:>12.1f}" for t in times))


def microseconds(function: Callable[[], object], repeats: int = 200) -> float:
    """Of the host and the device together, call after call, as a rollout has it."""
    with torch.no_grad():
        for _ in range(10):
            function()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            function()
        end.record()
        torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / repeats


def time_lengths() -> dict[str, list[float]]:
    """Microseconds a thousand tokens, forward and backward of one block each, at a constant number of tokens."""
    print(f"\none block, d {D}, {TOKENS} tokens, forward + backward, ns a token")
    print(f"{'S':<52}" + "".join(f"{length:>9}" for length in LENGTHS))
    blocks = {
        "ours": First(xLSTMBlockStack(xLSTMConfig(embedding_dim=D, num_blocks=1, num_heads=HEADS))).cuda(),
        "Transformer, causal flash attention": TransformerBlock(D, D // 64).cuda(),
    }
    sweep = {}
    for name, block in blocks.items():
        sweep[name] = []
        for length in LENGTHS:
            x = torch.randn(TOKENS // length, length, D, device="cuda", requires_grad=True)
            sweep[name].append(1e6 * milliseconds(passes(block, x)[1]) / TOKENS)
        print(f"{name:<52}" + "".join(f"{t:>9.1f}" for t in sweep[name]))
    return sweep


def draw(sweep: dict[str, Sequence[float]], file: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, times in sweep.items():
        axes.plot(LENGTHS, times, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="sequence length", ylabel="ns a token, forward + backward")
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
