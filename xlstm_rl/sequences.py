"""Sequences: how a rollout is cut into them, and what a minibatch of them holds.

Shapes: B sequences, S steps of each, N floats of packed memory. Flat arrays (B * S, ...) run through a whole sequence,
then the next.
"""

from typing import NamedTuple

from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor


class Sequences(NamedTuple):
    """What the policy reads of a minibatch: ``observations`` flat (B * S, ...), ``episode_starts`` (B, S) bool and
    ``states`` (B, N), the memory before the first step of each sequence."""

    observations: PyTorchObs
    episode_starts: Tensor
    states: Tensor


class SequencePlan(NamedTuple):
    """Sequences of ``seq_len`` steps, ``per_batch`` of them in each minibatch, ``total`` of them in the rollout."""

    seq_len: int
    per_batch: int
    total: int


def plan_sequences(n_steps: int, n_envs: int, *, seq_len: int | None, batch_size: int | None) -> SequencePlan:
    """Cut ``n_envs`` rows of ``n_steps`` into equal sequences and those into equal minibatches.

    Args:
        n_steps: steps of each row.
        n_envs: rows.
        seq_len: steps of a sequence, a divisor of ``n_steps``; None for whole rows.
        batch_size: steps of a minibatch, over all its sequences; None for four minibatches,
            or the largest smaller number of them into which the sequences divide.

    Raises:
        ValueError: a size that does not divide, with the sizes that would.

    >>> plan_sequences(128, 8, seq_len=None, batch_size=256)
    SequencePlan(seq_len=128, per_batch=2, total=8)
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be >= 1, got {n_steps}")
    seq_len = n_steps if seq_len is None else seq_len
    if seq_len < 1 or n_steps % seq_len:
        raise ValueError(
            f"seq_len must divide n_steps={n_steps}, got {seq_len}; use one of {_divisors(n_steps)}, or None for all"
        )
    total = n_envs * n_steps // seq_len
    if batch_size is None:
        # Not one step alone, whose advantage could not be normalised
        fitting = [count for count in (2, 3, 4) if total % count == 0 and total // count * seq_len > 1]
        minibatches = max(fitting, default=1)
        return SequencePlan(seq_len, total // minibatches, total)
    if batch_size < seq_len or batch_size % seq_len or total % (batch_size // seq_len):
        sizes = [seq_len * count for count in _divisors(total)]
        raise ValueError(
            f"batch_size must hold whole sequences of seq_len={seq_len} steps and divide the rollout of "
            f"{n_envs} * {n_steps} steps, got {batch_size}; use one of {sizes}, or a smaller seq_len"
        )
    return SequencePlan(seq_len, batch_size // seq_len, total)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
