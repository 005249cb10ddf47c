"""The settings of the algorithm that depend on each other, checked when the model is made."""

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces

from xlstm_rl.buffers import DictSequenceRolloutBuffer, SequenceRolloutBuffer
from xlstm_rl.distributions import mask_parts
from xlstm_rl.masks import METHOD, has_masks
from xlstm_rl.mlp_policy import MlpPolicy
from xlstm_rl.sequences import SequencePlan, plan_sequences

if TYPE_CHECKING:
    from xlstm_rl.ppo import xLSTMPPO

SHORT = 8  # steps; what is shorter than any memory is no sequence to learn from


class BufferSettings(NamedTuple):
    """The rollout buffer's class and the options that are not SB3's."""

    kind: type[SequenceRolloutBuffer]
    options: dict[str, Any]


def check_sequences(n_steps: int, seq_len: int | None) -> None:
    """Raise ValueError unless ``seq_len`` divides ``n_steps``."""
    plan_sequences(n_steps, 1, seq_len=seq_len, batch_size=None)


def buffer_of(model: "xLSTMPPO") -> BufferSettings:
    """The buffer that the model's settings ask for.

    Raises:
        ValueError: a setting that does not fit the others, with the cure.
    """
    if model.n_epochs < 1:
        raise ValueError(f"n_epochs must be >= 1, got {model.n_epochs}")
    _check_space("observation", model.observation_space)
    _check_space("action", model.action_space)
    plan = plan_sequences(model.n_steps, model.n_envs, seq_len=model.seq_len, batch_size=model.batch_size)
    _warn_of_short_sequences(model, plan)
    _check_policy(model)
    if not 0 <= model.burn_in <= plan.seq_len:
        raise ValueError(f"burn_in must be between 0 and seq_len={plan.seq_len}, got {model.burn_in}")
    options = {"seq_len": plan.seq_len, "burn_in": model.burn_in, "mask_size": _mask_size(model)}
    return BufferSettings(_buffer_class(model), {**model.rollout_buffer_kwargs, **options})


def _check_policy(model: "xLSTMPPO") -> None:
    if not issubclass(model.policy_class, MlpPolicy):
        raise ValueError(
            f"policy must have a memory, got {model.policy_class.__name__}; "
            f"use one of {sorted(model.policy_aliases)} or a subclass of xlstm_rl.MlpPolicy"
        )
    takes_parts = issubclass(model.policy_class, model.policy_aliases["MultiInputPolicy"])
    if takes_parts and not isinstance(model.observation_space, spaces.Dict):
        raise ValueError(f"MultiInputPolicy needs a Dict of observations, got {model.observation_space}; use MlpPolicy")


def _check_space(kind: str, space: spaces.Space) -> None:
    """Raise ValueError for spaces that Gymnasium has and SB3 has not, where it would fail in the midst of training."""
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else (space,):
        if np.any(getattr(part, "start", 0)):
            raise ValueError(f"the {kind} space {part} must start at 0; wrap the environment to shift it")
        if isinstance(part, spaces.MultiDiscrete) and part.nvec.ndim > 1:
            raise ValueError(f"the {kind} space {part} must have one dimension; wrap the environment to flatten it")
        if isinstance(part, spaces.Box) and not part.shape:
            raise ValueError(
                f"the {kind} space {part} must have a dimension; wrap the environment to give it shape (1,)"
            )


def _buffer_class(model: "xLSTMPPO") -> type[SequenceRolloutBuffer]:
    given = model.rollout_buffer_class
    if given is None:
        is_dict = isinstance(model.observation_space, spaces.Dict)
        return DictSequenceRolloutBuffer if is_dict else SequenceRolloutBuffer
    if not issubclass(given, SequenceRolloutBuffer):
        raise ValueError(
            f"rollout_buffer_class must hold sequences, got {given.__name__}; "
            "use None or a subclass of SequenceRolloutBuffer"
        )
    return given


def _mask_size(model: "xLSTMPPO") -> int:
    """The flags of a mask; 0 where actions are not masked."""
    offered = model.env is not None and has_masks(model.env)
    wanted = offered if model.use_masking is None else model.use_masking
    if not wanted:
        return 0
    if model.env is not None and not offered:
        raise ValueError(f"use_masking=True needs environments with a method {METHOD}(); add it, or use None")
    return sum(mask_parts(model.action_space))


def _warn_of_short_sequences(model: "xLSTMPPO", plan: SequencePlan) -> None:
    """Where the batch size, not the user, has cut the rows to next to nothing."""
    if model.seq_len is not None or model.batch_size is None:
        return
    if plan.seq_len < min(SHORT, model.n_steps, model.batch_size):
        warnings.warn(
            f"batch_size={model.batch_size} and n_steps={model.n_steps} leave sequences of {plan.seq_len} steps only, "
            "and gradients flow back no further; use a batch_size that is a multiple or a divisor of n_steps",
            UserWarning,
            stacklevel=4,
        )
