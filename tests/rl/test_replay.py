"""States and log-probabilities of a rollout read again: burn-in, refreshing, recomputing."""

import numpy as np
import pytest
import torch

from tests.rl.conftest import TINY
from tests.rl.test_ppo import ReplayGaps, collect
from xlstm_rl.replay import evaluate, recompute_log_probs, refresh_states

CRITICS = ["shared", "detached", "separate", "none"]


def changed(model):
    """The same policy after a step away from the one of the rollout."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def states_of(model, indices):
    return model.rollout_buffer.sequences(np.asarray(indices)).observations.states


@pytest.mark.parametrize("burn_in", [0, 1, 3, 4])
def test_burn_in_leaves_the_first_ratio_at_one(tiny_model, burn_in):
    callback = ReplayGaps()
    tiny_model(seq_len=4, burn_in=burn_in, batch_size=16, learning_rate=0.01).learn(32 * 4, callback=callback)
    assert max(callback.gaps) < 1e-5


def test_burn_in_brings_the_memory_nearer_to_the_present_weights(tiny_model, drift_env):
    """A whole chunk read before, of a memory that an episode's start has emptied, makes it exact."""
    model = tiny_model(drift_env(length=4), seq_len=4, burn_in=4)
    collect(model)
    buffer = model.rollout_buffer
    buffer.episode_starts[:] = 0
    buffer.episode_starts[::8] = 1  # chunks 0 and 2 begin an episode, 1 and 3 go on
    changed(model)
    exact = changed_evaluation(model, burn_in=4, chunks=[0, 1])
    whole = changed_evaluation(model, burn_in=0, chunks=[0], length=8)
    torch.testing.assert_close(exact, whole, rtol=1e-4, atol=1e-5)


def changed_evaluation(model, burn_in, chunks, length=4):
    buffer = model.rollout_buffer
    buffer.seq_len, buffer.burn_in = length, burn_in
    with torch.no_grad():
        return evaluate(model.policy, buffer.sequences(np.array(chunks)))[0]


def test_refreshed_states_are_those_of_the_present_weights(tiny_model):
    model = tiny_model(seq_len=4)
    buffer = collect(model)
    before = {step: state.copy() for step, state in buffer.states.items()}
    refresh_states(model.policy, buffer)
    for step, state in before.items():  # the weights are still the rollout's
        np.testing.assert_allclose(buffer.states[step], state, rtol=1e-4, atol=1e-5)
    refresh_states(changed(model).policy, buffer)
    row = buffer.rows(0, 8)
    expected = model.policy.read(row.observations, torch.from_numpy(buffer.states[0]), row.episode_starts)
    torch.testing.assert_close(torch.from_numpy(buffer.states[8]), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(buffer.states[8] - before[8])[np.isfinite(before[8])].max() > 1e-2


def test_training_refreshes_before_every_epoch_but_the_first(tiny_model, monkeypatch):
    calls = []
    monkeypatch.setattr("xlstm_rl.training.refresh_states", lambda *_: calls.append(1))
    tiny_model(seq_len=4, n_epochs=3, state_refresh=True).learn(32)
    assert len(calls) == 2


@pytest.mark.parametrize("seq_len", [4, 16])
def test_recomputed_log_probabilities_make_the_first_ratio_one(tiny_model, seq_len):
    model = changed_after_rollout(tiny_model, seq_len)
    recompute_log_probs(model.policy, model.rollout_buffer, 16)
    for samples in model.rollout_buffer.get(16):
        log_prob = evaluate(model.policy, samples)[1]
        torch.testing.assert_close(log_prob, samples.old_log_prob, rtol=1e-5, atol=1e-6)


def changed_after_rollout(tiny_model, seq_len):
    model = tiny_model(seq_len=seq_len)
    collect(model)
    return changed(model)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("cell", ["xlstm", "lstm", "gru"])
def test_every_critic_of_every_cell_trains_on_what_the_rollout_saw(tiny_model, cell, critic):
    memory = {**TINY, "critic": critic} if cell == "xlstm" else {"cell": cell, "embedding_dim": 8, "critic": critic}
    callback = ReplayGaps()
    options = {"seq_len": 8, "batch_size": 16, "learning_rate": 0.01, "policy_kwargs": {"memory": memory}}
    tiny_model(**options).learn(32 * 3, callback=callback)
    assert max(callback.gaps) < 1e-5


@pytest.mark.parametrize(
    ("critic", "reached"), [("shared", True), ("detached", False), ("separate", False), ("none", False)]
)
def test_the_critics_gradient_reaches_a_shared_memory_only(tiny_model, critic, reached):
    model = tiny_model(policy_kwargs={"memory": {**TINY, "critic": critic}})
    collect(model)
    values, _, _ = evaluate(model.policy, model.rollout_buffer.sequences(np.array([0])))
    gradients = torch.autograd.grad(values.sum(), list(model.policy.memory.actor.parameters()), allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients) == reached


def test_a_memory_that_is_not_reset_lasts_over_episodes(tiny_model, drift_env):
    memory = {**TINY, "reset_on_done": False}
    model = tiny_model(drift_env(length=4), policy_kwargs={"memory": memory, "normalize": False})
    buffer = collect(model)
    with torch.no_grad():
        values, *_ = evaluate(model.policy, buffer.sequences(np.array([0])))
        kept = evaluate_without_starts(model, buffer)
    torch.testing.assert_close(values, torch.from_numpy(buffer.values[:, 0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values, kept)
    observation, state = np.ones((2, 2), np.float32), model.predict(np.ones((2, 2), np.float32))[1]
    ended, going = (model.predict(observation, state, np.full(2, end))[1][0] for end in (True, False))
    np.testing.assert_array_equal(ended, going)


def evaluate_without_starts(model, buffer):
    buffer.episode_starts[:] = 0
    return evaluate(model.policy, buffer.sequences(np.array([0])))[0]


def test_the_state_norm_and_the_speeds_are_logged(tiny_model):
    logged = tiny_model().learn(32, log_interval=None).logger.name_to_value
    assert logged["train/state_norm"] > 0
    assert {"time/fps_rollout", "time/fps_train"} <= set(logged)
