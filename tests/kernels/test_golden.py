"""Our recurrences against the pure-PyTorch functions that their authors published: golden references.

Shapes: B batch, S sequence, NH heads, DK / DV key / value head dim, DH head dim; theirs are (B, NH, S, ...).
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_autograd
from mlstm_kernels.torch.parallel.native import mlstm_parallel__native_autograd
from mlstm_kernels.torch.recurrent.native_sequence import mlstm_recurrent_sequence__native_fw
from torch import Tensor
from xlstm.blocks.mlstm.backends import parallel_stabilized_simple, recurrent_step_stabilized_simple
from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

from tests.kernels.recurrences import (
    FORWARD_TOLERANCE,
    GRADIENT_TOLERANCE,
    MLSTM,
    SLSTM,
    Operands,
    Result,
    differentiate,
)
from xlstm_kernels import backends, mlstm, mLSTMState, slstm, sLSTMState

S, CHUNK = 64, 16
Run = Callable[..., tuple[Tensor, tuple]]


def xlstm_recurrent_step(*operands: Tensor) -> tuple[Tensor, mLSTMState]:
    """Step after step; keys are scaled where ours scales queries, and so is the memory."""
    *sequences, (c, n, m) = operands
    root, outputs = c.shape[-2] ** 0.5, []
    state = c / root, n[..., None] / root, m[..., None, None]
    for q, k, v, i, f in zip(*(x.unbind(1) for x in sequences), strict=True):
        q, k, v = (x[:, :, None].clone() for x in (q, k, v))  # they are squeezed in place
        h, state = recurrent_step_stabilized_simple(*state, q, k, v, i[..., None, None], f[..., None, None])
        outputs.append(h.transpose(1, 2))
    c, n, m = state
    return torch.cat(outputs, dim=1), mLSTMState(root * c, root * n.squeeze(-1), m[..., 0, 0])


def head_first(function: Callable) -> Run:
    """A function of (B, NH, S, ...) sequences as one of ours, (B, S, NH, ...)."""

    def run(*operands: Tensor) -> tuple[Tensor, tuple]:
        *sequences, state = operands
        h, last = function(*(x.transpose(1, 2) for x in sequences), state=state)
        return h.transpose(1, 2), last

    return run


@head_first
def kernels_chunkwise(*sequences: Tensor, state: mLSTMState) -> tuple[Tensor, tuple]:
    c, n, m = state
    h, (c, n, m) = mlstm_chunkwise__native_autograd(
        *sequences, c, n, m[..., None], return_last_states=True, chunk_size=CHUNK
    )
    return h, mLSTMState(c, n, m.squeeze(-1))


@head_first
def kernels_recurrent(*sequences: Tensor, state: mLSTMState) -> tuple[Tensor, tuple]:
    c, n, m = state
    h, (c, n, m) = mlstm_recurrent_sequence__native_fw(
        *sequences, c, n, m[..., None], return_last_states=True, dtype_state=c.dtype
    )
    return h, mLSTMState(c, n, m.squeeze(-1))


@head_first
def xlstm_parallel(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: mLSTMState) -> tuple[Tensor, tuple]:
    return parallel_stabilized_simple(q, k, v, i[..., None], f[..., None]), state


@head_first
def kernels_parallel(*sequences: Tensor, state: mLSTMState) -> tuple[Tensor, tuple]:
    return mlstm_parallel__native_autograd(*sequences), state


def xlstm_slstm(gates: Tensor, recurrent_weight: Tensor, bias: Tensor, state: sLSTMState) -> tuple[Tensor, tuple]:
    """Their vanilla loop: (S, B, gate · NH · DH), recurrent weight [head; gate, out; in], one tensor of all states."""
    states, last, _ = slstm_forward(
        gates.flatten(2).transpose(0, 1),
        torch.stack([x.flatten(1) for x in state]),
        recurrent_weight.transpose(0, 1).flatten(1, 2),
        bias.flatten(),
        slstm_pointwise_function_registry["slstm"],
    )
    heads = gates.shape[-2:]
    return states[0, 1:].transpose(0, 1).unflatten(-1, heads), sLSTMState(*last.unflatten(-1, heads))


CARRYING = {
    "xlstm recurrent_step_stabilized_simple": xlstm_recurrent_step,
    "mlstm_kernels recurrent_sequence native": kernels_recurrent,
    "mlstm_kernels chunkwise native_autograd": kernels_chunkwise,
}
FRESH_ONLY = {
    "xlstm parallel_stabilized_simple": xlstm_parallel,
    "mlstm_kernels parallel native_autograd": kernels_parallel,
}


def implementations(op: str) -> list:
    """Backend and dtype of all that runs on a CPU."""
    dtypes = {"native": [torch.float64, torch.float32], "compiled": [torch.float32]}
    return [
        pytest.param(name, dtype, id=f"{name}-{dtype}") for name in backends()[op] for dtype in dtypes.get(name, [])
    ]


def outputs_differentiated(run: Run, operands: Operands, state: tuple, dtype: torch.dtype) -> Result:
    """Values of all, gradients of the outputs alone: theirs follow the scale m, in which c and n are expressed."""

    def run_and_detach(*arguments: Tensor) -> tuple[Tensor, tuple]:
        h, last = run(*arguments)
        return h, type(last)(*(x.detach() for x in last))

    return differentiate(run_and_detach, operands, state, dtype=dtype)


def assert_all_close(actual: list[Tensor], expected: list[Tensor], tolerances: list[float]) -> None:
    for at, (a, e, tolerance) in enumerate(zip(actual, expected, tolerances, strict=True)):
        error = (a.double() - e.double()).abs().max() / e.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"[{at}] is off by {error:.0e}"


@pytest.mark.parametrize(("backend", "dtype"), implementations("mlstm"))
@pytest.mark.parametrize(
    ("golden", "fresh"),
    [
        *(pytest.param(golden, False, id=f"{name}, given state") for name, golden in CARRYING.items()),
        *(pytest.param(golden, True, id=f"{name}, fresh") for name, golden in (CARRYING | FRESH_ONLY).items()),
    ],
)
def test_mlstm_is_what_its_authors_published(golden: Run, fresh: bool, backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    operands = tuple(x.to(dtype).double() for x in MLSTM.operands(S))
    state = mLSTMState(*(x.to(dtype).double() for x in MLSTM.state(fresh=fresh)))
    # Theirs have no empty memory: one that lies far below every input gate takes its place.
    expected = outputs_differentiated(golden, operands, state._replace(m=state.m.clamp(min=-1e4)), torch.float64)
    actual = outputs_differentiated(partial(mlstm, backend=backend), operands, state, dtype)
    values, gradients = FORWARD_TOLERANCE[dtype], GRADIENT_TOLERANCE[dtype]
    of_gates = max(gradients, 1e-5)  # 2e-6 measured: theirs differentiate m, which epsilon keeps from cancelling
    compared = 1 if golden in FRESH_ONLY.values() else 4  # h, and c, n, m where they are returned
    assert_all_close(actual.values[:compared], expected.values[:compared], [values] * compared)
    assert_all_close(actual.gradients, expected.gradients, [gradients] * 3 + [of_gates] * 2 + [gradients] * 2)


@pytest.mark.parametrize(("backend", "dtype"), implementations("slstm"))
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "given state"])
def test_slstm_is_what_its_authors_published(fresh: bool, backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    operands = tuple(x.to(dtype).double() for x in SLSTM.operands(S))
    state = sLSTMState(*(x.to(dtype).double() for x in SLSTM.state(fresh=fresh)))
    empty = state._replace(m=torch.zeros_like(state.m))  # theirs tells an empty memory by n = 0
    expected = outputs_differentiated(xlstm_slstm, operands, empty if fresh else state, torch.float64)
    actual = outputs_differentiated(partial(slstm, backend=backend), operands, state, dtype)
    compared = 4 if fresh else 6  # to c and n of an empty memory no gradient is defined
    assert_all_close(actual.values, expected.values, [FORWARD_TOLERANCE[dtype]] * 5)
    tolerances = [GRADIENT_TOLERANCE[dtype]] * compared
    assert_all_close(actual.gradients[:compared], expected.gradients[:compared], tolerances)
