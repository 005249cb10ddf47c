"""Sequences: how a rollout is cut into them, and what a minibatch of them holds.

Shapes: B sequences, S steps of each, N floats of packed memory. Flat arrays (B * S, ...) run through a whole sequence,
then the next.
"""

import math
from typing import NamedTuple

from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

MINIBATCHES = 4  # an epoch, where the batch size is not given


class BurnIn(NamedTuple):
    """What some sequences of a minibatch read before they begin: ``rows`` (R,) of them, ``observations`` flat
    (R * S, ...) and ``episode_starts`` (R, S)."""

    rows: Tensor
    observations: PyTorchObs
    episode_starts: Tensor


class Sequences(NamedTuple):
    """What the policy reads of a minibatch.

    ``observations`` flat (B * S, ...), ``episode_starts`` (B, S) bool, ``states`` (B, N), the memory before the first
    step of each sequence (before its burn-in, where it has one), and ``action_masks`` flat (B * S, ...) bool.
    """

    observations: PyTorchObs
    episode_starts: Tensor
    states: Tensor
    action_masks: Tensor | None = None
    burn_in: BurnIn | None = None


class SequencePlan(NamedTuple):
    """Sequences of ``seq_len`` steps, at most ``per_batch`` of them in a minibatch, ``total`` in the rollout."""

    seq_len: int
    per_batch: int
    total: int


def plan_sequences(n_steps: int, n_envs: int, *, seq_len: int | None, batch_size: int | None) -> SequencePlan:
    """Cut ``n_envs`` rows of ``n_steps`` into equal sequences and those into minibatches.

    Args:
        n_steps: steps of each row.
        n_envs: rows.
        seq_len: steps of a sequence, a divisor of ``n_steps``. None for the longest that divides ``batch_size`` too;
            without that, for whole rows, or the longest that make four minibatches where whole rows cannot make two.
        batch_size: steps of a minibatch, over all its sequences. With ``seq_len`` given it must divide; without, the
            last minibatch may be smaller, as in SB3. None for four minibatches, or the largest smaller number of them
            into which the sequences divide.

    Raises:
        ValueError: a size that does not divide, with the sizes that would.

    >>> plan_sequences(128, 8, seq_len=None, batch_size=256)
    SequencePlan(seq_len=128, per_batch=2, total=8)
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be >= 1, got {n_steps}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    if seq_len is None:
        seq_len = _longest(n_steps, n_envs) if batch_size is None else math.gcd(n_steps, batch_size)
    elif seq_len < 1 or n_steps % seq_len:
        raise ValueError(
            f"seq_len must divide n_steps={n_steps}, got {seq_len}; use one of {_divisors(n_steps)}, or None"
        )
    elif batch_size is not None:
        _check_divides(batch_size, n_steps, n_envs, seq_len)
    total = n_envs * n_steps // seq_len
    per_batch = total // _minibatches(total, seq_len) if batch_size is None else min(batch_size // seq_len, total)
    return SequencePlan(seq_len, per_batch, total)


def _longest(n_steps: int, n_envs: int) -> int:
    """Whole rows, or where these make one minibatch only, the longest pieces of them that make four."""
    if _minibatches(n_envs, n_steps) > 1:
        return n_steps
    pieces = (length for length in reversed(_divisors(n_steps)) if length > 1)
    return next((length for length in pieces if n_envs * n_steps // length % MINIBATCHES == 0), n_steps)


def _minibatches(total: int, seq_len: int) -> int:
    """The number of minibatches of ``total`` sequences; no minibatch is one step, which has no spread to normalise."""
    fitting = (count for count in range(MINIBATCHES, 1, -1) if total % count == 0 and total // count * seq_len > 1)
    return next(fitting, 1)


def _check_divides(batch_size: int, n_steps: int, n_envs: int, seq_len: int) -> None:
    total = n_envs * n_steps // seq_len
    if batch_size % seq_len or total % (batch_size // seq_len):
        sizes = [seq_len * count for count in _divisors(total)]
        raise ValueError(
            f"batch_size must hold whole sequences of seq_len={seq_len} steps and divide the rollout of "
            f"{n_envs} * {n_steps} steps, got {batch_size}; use one of {sizes}, or a smaller seq_len"
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
