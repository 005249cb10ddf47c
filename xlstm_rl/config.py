"""What ``policy_kwargs=dict(memory=dict(...))`` may say: one flat dictionary for every cell."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from xlstm_kernels import xLSTMConfig

CELLS = ("xlstm", "mlstm", "slstm", "lstm", "gru")
CRITICS = ("shared", "separate", "detached", "none")
# Where the blocks of a cell stand that is a stack of one kind
_STACKS: dict[str, dict[str, Any]] = {"xlstm": {}, "mlstm": {"slstm_at": ()}, "slstm": {"slstm_at": "0:1"}}
_OWN = ("cell", "skip", "critic", "reset_on_done", "scale")
_SIZES = {
    "embedding_dim": 64,
    "num_blocks": 1,  # it masters CartPole without velocities in 40,000 steps; a second block costs half the speed
}
# A stack's outputs have unit scale, also at first, when they are noise that drowns the features beside them; an LSTM's
# begin about as small as this. Of 40 seeds 33 learn to repeat four bits in 1,200 steps, at a scale of 1 only 9.
SCALE = 0.25
_CONTRIB = {
    "lstm_hidden_size": "embedding_dim=64",
    "n_lstm_layers": "num_blocks=1",
    "shared_lstm": "critic='shared'",
    "enable_critic_lstm": "critic='separate' or 'none'",
    "lstm_kwargs": "the options of MemoryConfig",
}


def check_contrib_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError for what sb3-contrib's recurrent policies take, naming what stands for it."""
    for name in _CONTRIB.keys() & options.keys():
        raise TypeError(f"{name} is RecurrentPPO's; use memory=dict(cell='lstm', ...) with {_CONTRIB[name]}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The memory of a policy.

    Args:
        cell: ``xlstm``, any stack of xLSTM blocks; ``mlstm`` or ``slstm``, a stack of one kind; ``lstm`` or ``gru``,
            torch's own.
        embedding_dim: width of the memory's output.
        num_blocks: blocks of the stack, or layers of torch's cell.
        stack: the xLSTM stack; None for torch's cells.
        scale: at which an xLSTM cell's output begins. Small, actor and critic learn first from the features beside it;
            at 1, sooner from what is long past, where all depends on it.
        skip: whether actor and critic see the features beside the memory's output.
        critic: what the critic remembers with: the actor's memory (``shared``), the same without gradients into it
            (``detached``), one of its own (``separate``), or nothing (``none``).
        reset_on_done: whether an episode's end empties the memory; without, it lasts over episodes, as meta-learning
            wants it.
    """

    cell: str
    embedding_dim: int
    num_blocks: int
    stack: xLSTMConfig | None
    scale: float
    skip: bool
    critic: str
    reset_on_done: bool

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "MemoryConfig":
        """Read a flat dictionary: the fields above but ``stack``, and for xLSTM cells any field of ``xLSTMConfig``.

        Raises:
            TypeError: no dictionary.
            ValueError: an unknown option, cell or critic, dropout, or sizes that the stack refuses.

        >>> MemoryConfig.from_options({"embedding_dim": 32, "num_heads": 2, "slstm_at": (0,)})
        """
        if not isinstance(options, Mapping):
            raise TypeError(f"memory must be a dictionary of options, got {options!r}; use memory=dict(cell='xlstm')")
        cell, critic = options.get("cell", "xlstm"), options.get("critic", "shared")
        _check_choice("cell", cell, CELLS)
        _check_choice("critic", critic, CRITICS)
        known = sorted(_known(cell))
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"unknown memory option {unknown[0]!r} for cell {cell!r}; use one of {known}")
        if dropout := options.get("dropout", 0):
            raise ValueError(f"memory dropout must be 0, got {dropout}: rollout and update would disagree")
        given = {**_SIZES, **{name: value for name, value in options.items() if name not in _OWN}}
        for name in _SIZES:
            if not isinstance(given[name], int) or given[name] < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {given[name]!r}")
        for name in ("skip", "reset_on_done"):
            if not isinstance(options.get(name, True), bool):
                raise ValueError(f"memory {name} must be True or False, got {options[name]!r}")
        scale = options.get("scale", SCALE)
        if not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise ValueError(f"memory scale must be a number > 0 and finite, got {scale!r}")
        return cls(
            cell=cell,
            embedding_dim=given["embedding_dim"],
            num_blocks=given["num_blocks"],
            stack=xLSTMConfig(**given, **_STACKS[cell]) if cell in _STACKS else None,
            scale=scale,
            skip=options.get("skip", True),
            critic=critic,
            reset_on_done=options.get("reset_on_done", True),
        )


def _known(cell: str) -> set[str]:
    """The options that the cell takes."""
    if cell not in _STACKS:
        return {*_OWN, *_SIZES} - {"scale"}
    return {*_OWN, *(field.name for field in dataclasses.fields(xLSTMConfig))} - set(_STACKS[cell])


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown memory {name} {value!r}; use one of {list(choices)}")
