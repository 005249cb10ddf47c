"""What users hand to ``predict`` and to an actor: checked, and turned into tensors.

Shapes: B batch, N floats of packed state, A flags of an action mask.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from xlstm_rl.distributions import mask_parts
from xlstm_rl.numpy_actor import check_allowed

Observation: TypeAlias = np.ndarray | dict[str, np.ndarray]


def check_observation(observation: Any, space: spaces.Space) -> None:
    """Raise ValueError for what Gym's ``reset`` returns, and for an array in place of a dictionary or the reverse."""
    if isinstance(observation, tuple):
        raise ValueError(
            "observation is a tuple: you are probably mixing Gym API, whose reset returns (obs, info), with SB3's "
            "VecEnv API; pass obs alone"
        )
    if isinstance(observation, dict) != isinstance(space, spaces.Dict):
        raise ValueError(f"observation is a {type(observation).__name__}, but this policy was made for {space}")


def stack_observations(observations: Sequence[Any]) -> Any:
    """One batch (B, ...) from B observations, each an array or a dictionary of arrays."""
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


def batch_size_of(observations: PyTorchObs) -> int:
    """B, of observations (B, ...) or of a dictionary of them."""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def as_state(state: tuple[np.ndarray | th.Tensor, ...], batch_size: int, size: int, device: th.device) -> th.Tensor:
    """A state as ``predict`` returned it: (B, N), with N = ``size``.

    Raises:
        TypeError: a state that is no tuple.
        ValueError: a tuple of another length, a state of another batch size or of another memory.
    """
    if not isinstance(state, tuple | list):
        raise TypeError(
            f"state must be the tuple that predict returned, got {type(state).__name__}; pass that, or None"
        )
    if len(state) != 1:
        raise ValueError(f"state must be the tuple of one array that predict returned, got {len(state)}; pass that")
    packed = th.as_tensor(state[0], dtype=th.float32, device=device)
    if packed.ndim != 2 or len(packed) != batch_size:
        raise ValueError(
            f"state has shape {tuple(packed.shape)} but there are {batch_size} observations; pass the state that "
            "predict returned for these environments, or None to start with a fresh memory"
        )
    if packed.shape[1] != size:
        raise ValueError(
            f"state must be {(batch_size, size)}, got {tuple(packed.shape)}: it is another memory's; "
            "pass what this policy's predict returned, or None to start with a fresh memory"
        )
    return packed


def as_flags(episode_start: np.ndarray | th.Tensor | None, batch_size: int, device: th.device) -> th.Tensor | None:
    """``episode_start``, (B,) or one for all, as bool (B,); None where no row starts, which is cheaper.

    Tensors pass as they are.

    Raises:
        ValueError: not one flag for each observation.
    """
    if episode_start is None:
        return None
    if isinstance(episode_start, th.Tensor):
        return episode_start
    starts = np.asarray(episode_start, dtype=bool)
    if starts.ndim == 0:
        starts = np.full(batch_size, starts)
    if starts.shape != (batch_size,):
        raise ValueError(
            f"episode_start must have one flag for each of the {batch_size} observations, got shape {starts.shape}"
        )
    return th.as_tensor(starts, device=device) if starts.any() else None


def as_masks(action_masks: Any, space: spaces.Space, batch_size: int, device: th.device) -> th.Tensor:
    """``action_masks`` as bool (B, A); one row's may come without its batch. Tensors pass as they are.

    Raises:
        ValueError: a wrong number of flags, a choice without an allowed action, or an action space that has no masks.
    """
    if isinstance(action_masks, th.Tensor):
        return action_masks
    masks, parts = np.asarray(action_masks, dtype=bool), mask_parts(space)
    form = batch_size, sum(parts)
    if masks.size != math.prod(form):
        raise ValueError(f"action_masks must be {form} for {space}, got shape {masks.shape}")
    masks = masks.reshape(form)
    check_allowed(masks, parts)
    return th.as_tensor(masks, device=device)


class StatelessCalls:
    """Notices a loop that never passes the state back: such a policy acts without its memory."""

    def __init__(self) -> None:
        self._before, self._warned = False, False

    def count(self, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None) -> None:
        """Warn, once, at the second call in a row with neither a state nor the start of an episode."""
        stateless = state is None and episode_start is None
        if stateless and self._before and not self._warned:
            self._warned = True
            warnings.warn(
                "predict was called again without its state: the memory is empty at every such call; pass on what it "
                "returned, action, state = model.predict(obs, state, episode_start=start)",
                UserWarning,
                stacklevel=4,
            )
        self._before = stateless
