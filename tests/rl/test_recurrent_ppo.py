"""With an LSTM and equal weights the policy is that of sb3-contrib's RecurrentPPO."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from xlstm_rl.sequences import Sequences

contrib = pytest.importorskip("sb3_contrib")

B, S = 3, 7
CRITICS = {  # ours -> theirs
    "separate": {"shared_lstm": False, "enable_critic_lstm": True},
    "detached": {"shared_lstm": True, "enable_critic_lstm": False},
    "none": {"shared_lstm": False, "enable_critic_lstm": False},
}


@pytest.fixture(params=list(CRITICS))
def critic(request):
    return request.param


@pytest.fixture(params=[spaces.Discrete(3), spaces.Box(-2, 2, (2,), np.float32)], ids=["Discrete", "Box"])
def policies(request, critic, tiny_model, drift_env):
    """Theirs and ours, with their weights in both."""
    env = drift_env(action_space=request.param)
    options = {"lstm_hidden_size": 16, "n_lstm_layers": 2, "net_arch": [8], **CRITICS[critic]}
    theirs = contrib.RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=options, seed=1, device="cpu").policy
    memory = {"cell": "lstm", "embedding_dim": 16, "num_blocks": 2, "critic": critic, "skip": False}
    ours = tiny_model(env, "MlpLstmPolicy", policy_kwargs={"memory": memory, "normalize": False}).policy
    pairs = [(ours.memory.actor.rnn, theirs.lstm_actor)]
    pairs += [(getattr(ours, name), getattr(theirs, name)) for name in ("mlp_extractor", "action_net", "value_net")]
    if critic != "detached":
        mine = ours.memory.critic
        pairs.append((mine.rnn, theirs.lstm_critic) if critic == "separate" else (mine, theirs.critic))
    for mine, given in pairs:
        mine.load_state_dict(given.state_dict())
    with torch.no_grad():
        theirs.action_net.weight.mul_(50)  # at the start all actions are nearly alike
        ours.action_net.weight.copy_(theirs.action_net.weight)
    return theirs, ours


@pytest.fixture
def episodes():
    rng = np.random.default_rng(0)
    starts = np.zeros((B, S), dtype=bool)
    starts[0, [0, 4]] = starts[1, 3] = True
    return torch.from_numpy(rng.normal(size=(B, S, 2)).astype(np.float32)), starts


def empty(theirs, rows):
    shape = (theirs.lstm_actor.num_layers, rows, theirs.lstm_actor.hidden_size)
    pair = (torch.zeros(shape), torch.zeros(shape))
    return contrib.common.recurrent.type_aliases.RNNStates(pair, pair)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_steps_are_the_same(policies, episodes):
    theirs, ours = policies
    observations, starts = episodes
    state, their_state = ours.initial_state(B), empty(theirs, B)
    for t in range(S):
        flags = torch.from_numpy(starts[:, t]).float()
        expected = theirs.forward(observations[:, t], their_state, flags, deterministic=True)
        step = ours.step(observations[:, t], state, starts[:, t], deterministic=True)
        for mine, given in zip(step, expected[:3], strict=False):
            close(mine, given)
        state, their_state = step.state, expected[3]


def test_evaluated_sequences_and_their_gradients_are_the_same(policies, episodes):
    theirs, ours = policies
    observations, starts = episodes
    flat = observations.flatten(0, 1)
    actions = torch.from_numpy(np.stack([ours.action_space.sample() for _ in range(B * S)]))
    flags = torch.from_numpy(starts)
    expected = theirs.evaluate_actions(flat, actions, empty(theirs, B), flags.flatten().float())
    found = ours.evaluate_actions(Sequences(flat, flags, ours.initial_state(B)), actions)
    for mine, given in zip(found, expected, strict=True):
        close(mine, given)
    for policy, (values, log_prob, _) in ((theirs, expected), (ours, found)):
        policy.zero_grad()
        (values.sum() + log_prob.sum()).backward()
    for mine, given in zip(ours.memory.actor.rnn.parameters(), theirs.lstm_actor.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, given.grad, rtol=1e-4, atol=1e-5)


def test_predictions_are_the_same(policies, episodes):
    theirs, ours = policies
    observations, starts = episodes
    state = their_state = None
    for t in range(S):
        given = observations[:, t].numpy(), starts[:, t]
        expected, their_state = theirs.predict(given[0], their_state, given[1], deterministic=True)
        action, state = ours.predict(given[0], state, given[1], deterministic=True)
        np.testing.assert_allclose(action, expected, rtol=1e-6, atol=1e-6)
