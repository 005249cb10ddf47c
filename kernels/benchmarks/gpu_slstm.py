"""Time the sLSTM on a CUDA device beside cuDNN's LSTM of equal width and, where it is installed, ``flashrnn``.

python kernels/benchmarks/gpu_slstm.py

``pip install --no-deps flashrnn einops ninja`` brings the peer, of which the Triton kernels run here;
its others compile for minutes at every new shape.
"""

from collections.abc import Callable

import torch
import triton
from timing import COPY_BYTES, PRODUCT_OPERATIONS, milliseconds, replay
from torch import Tensor, nn

from xlstm_kernels import slstm

SHAPES = [  # B, S, NH, DH
    (256, 128, 4, 32),
    (64, 512, 4, 64),
    (16, 2048, 8, 64),
    (64, 512, 4, 128),
    (16, 1024, 4, 256),
    (16, 1024, 1, 768),
]


def main() -> None:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, triton {triton.__version__}, {torch.cuda.get_device_name()}; bfloat16, medians")
    time_slstm()


def time_slstm() -> None:
    """Ours through autograd, in a graph of the device and its kernels alone; both peers through autograd."""
    print(f"\n{'sLSTM':<30}{'B, S, NH, DH':>20}{'forward ms':>12}{'+ backward':>12}{'us a step':>12}{'':>8}")
    for B, S, NH, DH in SHAPES:
        gates, weight = bf16(B, S, 4, NH, DH), bf16(4, NH, DH, DH, scale=0.5 * DH**-0.5)
        bias = torch.randn(4, NH, DH, device="cuda", requires_grad=True)
        leaves = [gates, weight, bias]
        print_floor((B, S, NH, DH))
        report("ours", (B, S, NH, DH), lambda leaves=leaves: slstm(*leaves)[0], leaves)
        report_kernels((B, S, NH, DH), gates, weight, bias)
        x, lstm = bf16(B, S, NH * DH), nn.LSTM(NH * DH, NH * DH, batch_first=True).cuda().bfloat16()
        inputs = [x, *lstm.parameters()]
        report("cuDNN, dense, projection in", (B, S, NH, DH), lambda x=x, lstm=lstm: lstm(x)[0], inputs)
        report("flashrnn, triton_fused", (B, S, NH, DH), flashrnn_forward(leaves), leaves)


def bf16(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, device="cuda")).bfloat16().requires_grad_()


def flashrnn_forward(leaves: list[Tensor]) -> Callable[[], Tensor] | None:
    try:
        from flashrnn import flashrnn
    except ImportError:
        return None
    gates, weight, bias = leaves
    return lambda: flashrnn(gates, weight, bias.bfloat16(), function="slstm", backend="triton_fused")[0][0]


def report(name: str, shape: tuple[int, ...], forward: Callable[[], Tensor] | None, leaves: list[Tensor]) -> None:
    """A row of the table, or the reason why there is none; ours gets one more for the replay of a graph."""
    if forward is None:
        return
    try:
        probe = torch.randn_like(forward())

        def inference() -> None:
            with torch.no_grad():
                forward()

        def training() -> None:
            torch.autograd.grad(forward(), leaves, probe)

        print_row(name, shape, milliseconds(inference), milliseconds(training))
        if name == "ours":
            print_row("ours, in a graph", shape, milliseconds(replay(inference)), milliseconds(replay(training)))
    except (RuntimeError, ValueError, AssertionError, triton.runtime.errors.OutOfResources) as error:
        print(f"{name:<30}{shape!s:>20}  {type(error).__name__}: {str(error).splitlines()[0][:60]}")


def report_kernels(shape: tuple[int, ...], gates: Tensor, weight: Tensor, bias: Tensor) -> None:
    """The two operators without what surrounds them: forward that keeps nothing, forward that keeps the tape, backward
    with the weights' gradient."""
    gates, weight, bias = (x.detach() for x in (gates, weight, bias))
    ops, options, no_state = torch.ops.xlstm_kernels, (None, None, False, None), (None,) * 4
    inputs = (gates, weight, bias, *no_state, *options)
    inference = milliseconds(lambda: ops.slstm_triton(*inputs, False))
    recording = milliseconds(lambda: ops.slstm_triton(*inputs, True))
    h, _, c_last, n_last, _, tape = ops.slstm_triton(*inputs, True)
    saved = (weight, bias, h, tape, *no_state[:3], c_last, n_last, *options)
    dh = torch.randn_like(h)
    backward = milliseconds(lambda: ops.slstm_triton_backward(dh, None, None, None, *saved))
    print_row("ours, operators", shape, inference, recording + backward)
    print(f"{'':<30}{'recording':>20}{recording:>12.3f}{backward:>12.3f}  (backward alone)")


def print_floor(shape: tuple[int, ...]) -> None:
    """What its bytes or its products take alone: gates read and h written; for the way back both read once more, dh
    read, the gates' gradients written, and twice the products."""
    B, S, NH, DH = shape
    tensor, product = 2 * B * S * NH * DH / COPY_BYTES, 8 * B * S * NH * DH**2 / PRODUCT_OPERATIONS
    print_row("floor", shape, 1e3 * max(5 * tensor, product), 1e3 * max(15 * tensor, 3 * product))


def print_row(name: str, shape: tuple[int, ...], forward: float, both: float) -> None:
    print(f"{name:<30}{', '.join(map(str, shape)):>20}{forward:>12.3f}{both:>12.3f}{1e3 * forward / shape[1]:>12.2f}")


if __name__ == "__main__":
    main()
