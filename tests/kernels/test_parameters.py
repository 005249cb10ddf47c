"""Which parameters an optimiser decays."""

import pytest
import torch
from torch import nn

from tests.kernels.stacks import STACKS, random_stack, small_config
from xlstm_kernels import parameter_groups, xLSTMBlockStack

DECAYED = {"up", "down", "q", "k", "v", "o", "gates", "input_weight", "recurrent_weight"}


def names(module: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, parameter in module.named_parameters() if any(parameter is p for p in parameters)}


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
def test_the_weights_of_linear_maps_alone_are_decayed(options: dict) -> None:
    stack = random_stack(**options)
    decayed, undecayed = parameter_groups(stack, weight_decay=0.1)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    expected = {
        name
        for name, _ in stack.named_parameters()
        if not name.endswith("bias") and DECAYED & set(name.split(".")[-2:])
    }
    assert names(stack, decayed["params"]) == expected


class Model(nn.Module):
    """A user's own: embeddings, a stack, a head that shares the embedding's weight, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 3))
        self.embedding = nn.Embedding(10, 16)
        self.stack = xLSTMBlockStack(small_config())
        self.proj = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("decay_embeddings", [False, True])
def test_every_parameter_of_a_model_is_in_one_group_once(decay_embeddings: bool) -> None:
    model = Model()
    decayed, undecayed = parameter_groups(model, weight_decay=0.1, decay_embeddings=decay_embeddings)
    together = [*decayed["params"], *undecayed["params"]]
    assert sorted(map(id, together)) == sorted(map(id, model.parameters()))
    assert ("embedding.weight" in names(model, decayed["params"])) == decay_embeddings
    assert "proj.weight" in names(model, decayed["params"])
    assert {"scale", "proj.bias"} <= names(model, undecayed["params"])


def test_an_optimiser_takes_the_groups() -> None:
    model = Model()
    torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-3)
    with pytest.raises(ValueError, match="weight_decay must be >= 0, got -1"):
        parameter_groups(model, weight_decay=-1)
