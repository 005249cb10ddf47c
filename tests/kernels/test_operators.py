"""The recurrences as operators of PyTorch: registered rightly, traced as one node, exported, sober under autocast."""

import pytest
import torch
from torch import Tensor

from tests.kernels.recurrences import DK, DV, NH, RECURRENCES, B
from xlstm_kernels.ops.mlstm.chunkwise import mlstm_chunkwise, mlstm_chunkwise_backward

of_each = pytest.mark.parametrize("op", RECURRENCES, ids=lambda op: op.name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()


def random_resets(S: int) -> Tensor:
    return torch.rand(B, S) < 0.2


def mlstm_arguments(S: int, heads: int, *, record: bool) -> tuple[Tensor, ...]:
    shapes = [(B, S, heads, DK), (B, S, heads, DK), (B, S, heads, DV), (B, S, heads), (B, S, heads)]
    shapes += [(B, heads, DK, DV), (B, heads, DK)]
    return *(torch.randn(shape, requires_grad=record) for shape in shapes), torch.randn(B, heads)


@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize(("heads", "S", "chunk_size"), [(NH, 13, 8), (1, 8, 8)], ids=["filled up", "one chunk"])
@pytest.mark.parametrize("record", [True, False], ids=["recording", "not recording"])
@pytest.mark.parametrize("with_resets", [True, False], ids=["resets", "no resets"])
def test_the_chunkwise_operators_are_registered_rightly(
    with_resets: bool, record: bool, heads: int, S: int, chunk_size: int, normalize: bool
) -> None:
    resets = random_resets(S) if with_resets else None
    arguments = mlstm_arguments(S, heads, record=record)
    torch.library.opcheck(mlstm_chunkwise, (*arguments, resets, chunk_size, normalize, record))
    h, c, n, _, *tape = mlstm_chunkwise(*(x.detach() for x in arguments), resets, chunk_size, normalize, record)
    assert record == all(x.numel() for x in tape)
    if record:
        torch.library.opcheck(mlstm_chunkwise_backward, (h, c, n, resets, *tape))
