"""Minibatches of sequences from a rollout."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from xlstm_rl.buffers import DictSequenceRolloutBuffer, SequenceRolloutBuffer

N_STEPS, N_ENVS = 6, 3


def filled(buffer, observe):
    """A rollout in which everything says which step and environment it is of."""
    for step in range(N_STEPS):
        if buffer.wants_state():
            buffer.add_state(torch.tensor([[100.0 * env + step] for env in range(N_ENVS)]))
        place = np.array([100 * env + step for env in range(N_ENVS)], dtype=np.float32)
        values = torch.as_tensor(place)
        buffer.add(observe(place), place, place, np.full(N_ENVS, step == 2), values, values)
    return buffer


def vector_buffer(seq_len):
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    buffer = SequenceRolloutBuffer(N_STEPS, box, box, device="cpu", n_envs=N_ENVS, seq_len=seq_len)
    return filled(buffer, lambda place: place[:, None])


@pytest.mark.parametrize("seq_len", [1, 2, 3, 6, None])
def test_each_step_comes_once_an_epoch_in_its_order(seq_len):
    buffer = vector_buffer(seq_len)
    seen = []
    for batch in buffer.get():
        rows = batch.actions.reshape(-1, buffer.seq_len)
        torch.testing.assert_close(rows - rows[:, :1], torch.arange(buffer.seq_len).float().expand_as(rows))
        seen += rows.flatten().tolist()
    assert sorted(seen) == [100 * env + step for env in range(N_ENVS) for step in range(N_STEPS)]


def test_everything_in_a_minibatch_is_of_the_same_steps():
    for batch in vector_buffer(3).get(batch_size=6):
        place = batch.actions.flatten()
        for other in (batch.observations.observations.flatten(), batch.old_values, batch.old_log_prob):
            torch.testing.assert_close(other, place)
        torch.testing.assert_close(batch.observations.states.flatten(), place[::3])
        assert torch.equal(batch.observations.episode_starts.flatten(), place % 100 == 2)


def test_minibatches_have_the_size_asked_for():
    assert [len(batch.actions) for batch in vector_buffer(2).get(batch_size=6)] == [6, 6, 6]


def test_a_new_rollout_forgets_the_states_of_the_last():
    buffer = vector_buffer(3)
    buffer.reset()
    assert buffer.states == {}


def test_dictionaries_of_observations_keep_their_keys():
    space = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (2,), np.float32), "b": spaces.Discrete(1000)})
    buffer = DictSequenceRolloutBuffer(N_STEPS, space, spaces.Discrete(1000), device="cpu", n_envs=N_ENVS, seq_len=3)
    filled(buffer, lambda place: {"a": np.stack([place, -place], axis=1), "b": place.astype(np.int64)})
    batch = buffer.sequences(np.array([3]))
    expected = torch.tensor([103.0, 104.0, 105.0])
    torch.testing.assert_close(batch.observations.observations["a"], torch.stack([expected, -expected], dim=1))
    assert batch.observations.observations["b"].flatten().tolist() == [103, 104, 105]


def test_reading_an_unfinished_rollout_fails():
    box = spaces.Box(-1, 1, (1,), np.float32)
    buffer = SequenceRolloutBuffer(N_STEPS, box, box, device="cpu", n_envs=N_ENVS)
    with pytest.raises(AssertionError, match="complete"):
        next(buffer.get())
