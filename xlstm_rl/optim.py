"""Adam for policies of many small tensors, whose steps are mostly what happens around the arithmetic."""

from typing import Any, NamedTuple

import torch as th
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.nn.utils import clip_grad_norm_


class _Tensors(NamedTuple):
    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]  # views of ``counts``
    counts: Tensor


class ClippedAdam(th.optim.Adam):
    """torch's fused Adam, which can bound the gradients' norm in the same pass: ``step_clipped``.

    Arguments, state and ``state_dict`` are those of ``torch.optim.Adam``: each loads what the other has saved.
    """

    _tensors: _Tensors | None = None

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **{"fused": True, **options})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tensors = None  # a loaded state has tensors of its own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._tensors = None

    @th.no_grad()
    def step_clipped(self, max_norm: float) -> None:
        """``clip_grad_norm_`` and ``step``, as one pass that reads lists of tensors made once."""
        tensors = self._tensors or self._gather()
        gradients = [] if tensors is None else [parameter.grad for parameter in tensors.parameters]
        if tensors is None or any(gradient is None for gradient in gradients):
            clip_grad_norm_([p for group in self.param_groups for p in group["params"]], max_norm, foreach=True)
            self.step()
            return
        (group,) = self.param_groups
        beta1, beta2 = group["betas"]
        norm = _flatten_dense_tensors(gradients).norm()
        tensors.counts.add_(1)
        th._fused_adam_(
            tensors.parameters,
            gradients,  # type: ignore[arg-type]
            tensors.means,
            tensors.squares,
            [],
            tensors.steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
            grad_scale=((norm + 1e-6) / max_norm).clamp(min=1.0),  # what the gradients are divided by
        )

    def _gather(self) -> _Tensors | None:
        """The tensors of the only group, their steps counted in one; None where a plain step has to come first."""
        group = self.param_groups[0]
        parameters = group["params"]
        if len(self.param_groups) > 1 or not group["fused"] or group["amsgrad"]:
            return None
        if not all(parameter in self.state and parameter.is_contiguous() for parameter in parameters):
            return None
        states = [self.state[parameter] for parameter in parameters]
        counts = th.stack([state["step"] for state in states])
        steps = list(counts.unbind())
        for state, step in zip(states, steps, strict=True):
            state["step"] = step
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        self._tensors = _Tensors(parameters, means, squares, steps, counts)
        return self._tensors
