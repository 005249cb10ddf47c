"""What a rollout's stored states and log-probabilities become when the present weights read it again."""

from itertools import pairwise

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from xlstm_rl.buffers import SequenceRolloutBuffer
from xlstm_rl.mlp_policy import MlpPolicy


def evaluate(policy: MlpPolicy, samples: RolloutBufferSamples) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """Values, log-probabilities and entropy of a minibatch, each (M,)."""
    actions = samples.actions
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    values, log_prob, entropy = policy.evaluate_actions(samples.observations, actions)  # type: ignore[arg-type]
    return values.flatten(), log_prob, entropy


def refresh_states(policy: MlpPolicy, buffer: SequenceRolloutBuffer) -> None:
    """Put in place of the stored states those that ``policy`` has now, having read the rollout from its first step."""
    steps = sorted(buffer.states)
    state = buffer.to_torch(buffer.states[steps[0]])
    for start, stop in pairwise(steps):
        row = buffer.rows(start, stop)
        state = policy.read(row.observations, state, row.episode_starts)
        buffer.states[stop] = state.cpu().numpy()


@th.no_grad()
def recompute_log_probs(policy: MlpPolicy, buffer: SequenceRolloutBuffer, batch_size: int | None) -> None:
    """Put in place of the rollout's log-probabilities those that training computes before its first update."""
    plan = buffer.plan(batch_size)
    chunks = buffer.buffer_size // plan.seq_len
    for first in range(0, plan.total, plan.per_batch):
        indices = np.arange(first, min(first + plan.per_batch, plan.total))
        log_prob = evaluate(policy, buffer.sequences(indices))[1].view(len(indices), -1).cpu().numpy()
        for index, row in zip(indices, log_prob, strict=True):
            env, chunk = divmod(int(index), chunks)
            buffer.log_probs[chunk * plan.seq_len : (chunk + 1) * plan.seq_len, env] = row
