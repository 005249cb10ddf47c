"""The two groups in which an optimiser takes a model's parameters: with weight decay and without."""

from typing import Any, cast

from torch import nn

from .cells import sLSTMCell
from .layers import HeadwiseLinear

_MATRICES: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.Linear, ("weight",)),
    (HeadwiseLinear, ("weight",)),
    (sLSTMCell, ("input_weight", "recurrent_weight")),
)


def parameter_groups(module: nn.Module, *, weight_decay: float, decay_embeddings: bool = False) -> list[dict[str, Any]]:
    """A module's parameters in two groups for an optimiser of torch: decayed matrices, and all others undecayed.

    Decayed are the weights of linear maps: projections, headwise maps, the gates' weights, recurrent weights.
    Undecayed are biases, norms, skips, convolutions, and whatever else a model that holds a stack may have. Each
    parameter is in one group, once; a weight that an embedding shares with a linear map counts as the embedding's.

    Args:
        module: any module; stacks are found wherever they lie in it.
        weight_decay: of the first group.
        decay_embeddings: count embeddings among the matrices.

    Raises:
        ValueError: ``weight_decay`` is negative.

    >>> optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-3)
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
    matrices: set[nn.Parameter] = set()
    embeddings: set[nn.Parameter] = set()
    for child in module.modules():
        if isinstance(child, nn.Embedding | nn.EmbeddingBag):
            embeddings.add(cast(nn.Parameter, child.weight))
        for kind, names in _MATRICES:
            if isinstance(child, kind):
                matrices.update(getattr(child, name) for name in names)
    decayed = matrices | embeddings if decay_embeddings else matrices - embeddings
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p not in decayed], "weight_decay": 0.0},
    ]
