"""The policy: stepping, evaluating sequences, predicting, saving."""

import copy
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from xlstm_rl import MlpPolicy
from xlstm_rl.sequences import Sequences

B, S = 3, 12


@pytest.fixture
def policy(tiny_model):
    return tiny_model().policy


@pytest.fixture
def episodes():
    """Observations (B, S, 2), actions (B, S) and episode starts (B, S) at other places in every row."""
    rng = np.random.default_rng(0)
    starts = np.zeros((B, S), dtype=bool)
    starts[0, [0, 5]] = starts[1, 3] = True
    return rng.normal(size=(B, S, 2)).astype(np.float32), torch.from_numpy(rng.integers(0, 2, (B, S))), starts


def evaluate(policy, episodes, state=None):
    observations, actions, starts = episodes
    packed = policy.initial_state(len(starts)) if state is None else state
    sequences = Sequences(torch.from_numpy(observations).flatten(0, 1), torch.from_numpy(starts), packed)
    with torch.no_grad():
        values, log_prob, _ = policy.evaluate_actions(sequences, actions.flatten())
    return values.view(starts.shape), log_prob.view(starts.shape)


def walk(policy, episodes):
    """Values and log-probabilities of the same actions, step by step, and the state at the end."""
    observations, actions, starts = episodes
    state, values, log_probs = policy.initial_state(len(starts)), [], []
    with torch.no_grad():
        for t in range(starts.shape[1]):
            recollection = policy._recall(
                torch.from_numpy(observations[:, t]), state, torch.from_numpy(starts[:, t : t + 1])
            )
            state = recollection.state
            pi, vf = (
                policy.mlp_extractor.forward_actor(recollection.pi),
                policy.mlp_extractor.forward_critic(recollection.vf),
            )
            values.append(policy._values(vf)[:, 0])
            log_probs.append(policy._distribution(pi).log_prob(actions[:, t]))
    return torch.stack(values, dim=1), torch.stack(log_probs, dim=1), state


def test_evaluating_a_sequence_equals_walking_it_step_by_step(policy, episodes):
    values, log_probs = evaluate(policy, episodes)
    step_values, step_log_probs, _ = walk(policy, episodes)
    torch.testing.assert_close(values, step_values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_probs, step_log_probs, rtol=1e-5, atol=1e-6)


def test_an_episode_start_forgets_everything_before_it(policy, episodes):
    observations, actions, _starts = episodes
    values, log_probs = evaluate(policy, episodes)
    alone = observations[:1, 5:], actions[:1, 5:], np.zeros((1, S - 5), dtype=bool)
    fresh_values, fresh_log_probs = evaluate(policy, alone)
    torch.testing.assert_close(values[:1, 5:], fresh_values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_probs[:1, 5:], fresh_log_probs, rtol=1e-5, atol=1e-6)


def test_the_memory_matters_within_an_episode(policy, episodes):
    observations, actions, starts = episodes
    changed = observations.copy()
    changed[2, 0] += 1
    difference = (evaluate(policy, episodes)[0] - evaluate(policy, (changed, actions, starts))[0]).abs()
    assert difference[2, -1] > 1e-6
    assert not difference[:2].any()


def test_chunks_with_carried_state_equal_the_whole_row(policy, episodes):
    observations, actions, starts = episodes
    first, second = ((x[:, :5], x[:, 5:]) for x in (observations, starts))
    _, _, state = walk(policy, (first[0], actions[:, :5], second[0]))
    values, log_probs = evaluate(policy, (first[1], actions[:, 5:], second[1]), state)
    whole_values, whole_log_probs = evaluate(policy, episodes)
    torch.testing.assert_close(values, whole_values[:, 5:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_probs, whole_log_probs[:, 5:], rtol=1e-5, atol=1e-6)


def test_within_stepping_a_step_reads_the_weights_as_they_were_and_a_copy_reads_its_own(policy, episodes):
    observations, state = torch.from_numpy(episodes[0][:, 0]), policy.initial_state(B)

    def step(of):
        with torch.no_grad():
            return of.step(observations, state, deterministic=True).log_probs

    before = step(policy)
    with policy.stepping():
        torch.testing.assert_close(step(policy), before)
        twin = copy.deepcopy(policy)
        for owner in (policy, twin):
            owner.mlp_extractor.policy_net[0].weight.data.mul_(3)
        torch.testing.assert_close(step(policy), before)
        assert not torch.allclose(step(twin), before, atol=1e-6)
    assert torch.equal(step(policy), step(twin))


def test_predict_stepwise_chooses_what_the_sequence_says(policy, episodes):
    observations, _, starts = episodes
    state, chosen = None, []
    for t in range(S):
        action, state = policy.predict(observations[:, t], state, episode_start=starts[:, t], deterministic=True)
        chosen.append(action)
    ones = torch.ones(B, S, dtype=torch.int64)
    _, log_prob = evaluate(policy, (observations, ones, starts))
    np.testing.assert_array_equal(np.stack(chosen, axis=1), (log_prob.exp() > 0.5).numpy())


def test_predict_resets_the_rows_that_start_an_episode(policy, episodes):
    observations, _, _ = episodes
    _, used = policy.predict(observations[:, 0])
    start = np.array([True, False, True])
    _, (state,) = policy.predict(observations[:, 1], used, episode_start=start)
    _, (fresh,) = policy.predict(observations[:, 1])
    _, (carried,) = policy.predict(observations[:, 1], used)
    np.testing.assert_allclose(state[start], fresh[start], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state[~start], carried[~start], rtol=1e-5, atol=1e-6)
    assert np.abs(fresh - carried).max() > 1e-3


def test_predict_takes_one_observation_without_a_batch(policy):
    action, state = policy.predict(np.zeros(2, dtype=np.float32), deterministic=True)
    batch_action, batch_state = policy.predict(np.zeros((1, 2), dtype=np.float32), deterministic=True)
    assert action.shape == ()
    assert action == batch_action[0]
    np.testing.assert_array_equal(state[0], batch_state[0])


def test_predict_leaves_the_state_it_was_given_alone(policy, episodes):
    observations, _, _ = episodes
    _, state = policy.predict(observations[:, 0])
    before = state[0].copy()
    policy.predict(observations[:, 1], state, episode_start=np.array([True, False, False]))
    np.testing.assert_array_equal(state[0], before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observation": np.zeros((B, 4), np.float32)}, r"Unexpected observation shape \(3, 4\)"),
        ({"observation": {"a": np.zeros(2)}}, r"observation is a dict, but this policy was made for Box"),
        (
            {"observation": (np.zeros(2, np.float32), {})},
            r"mixing Gym API, whose reset returns \(obs, info\).* pass obs alone",
        ),
        ({"episode_start": np.zeros(2, bool)}, r"one flag for each of the 3 observations, got shape \(2,\)"),
        ({"state": (np.zeros((2, 7), np.float32),)}, r"state has shape \(2, 7\) but there are 3 observations"),
        ({"state": (np.zeros((3, 7), np.float32),) * 2}, "tuple of one array that predict returned, got 2"),
    ],
)
def test_predict_names_what_is_wrong_with_its_input(policy, arguments, message):
    arguments = {"observation": np.zeros((B, 2), np.float32), **arguments}
    with pytest.raises(ValueError, match=message):
        policy.predict(**arguments)


def test_predict_wants_the_tuple_that_it_returned(policy, episodes):
    _, state = policy.predict(episodes[0][:, 0])
    with pytest.raises(TypeError, match="state must be the tuple that predict returned, got ndarray"):
        policy.predict(episodes[0][:, 1], state[0])


def test_one_flag_starts_an_episode_in_every_row(policy, episodes):
    observations, _, _ = episodes
    _, state = policy.predict(observations[:, 0])
    _, fresh = policy.predict(observations[:, 1], state, episode_start=np.ones(B, bool))
    _, found = policy.predict(observations[:, 1], state, episode_start=True)
    np.testing.assert_array_equal(found[0], fresh[0])


def test_sampled_actions_follow_the_distribution_and_carry_its_log_probabilities(policy):
    """The quick path for discrete actions against torch's own."""
    torch.manual_seed(0)
    with torch.no_grad():
        policy.action_net.bias += torch.tensor([1.0, -0.5])
        observation = torch.randn(1, 2).expand(4000, 2)
        step = policy.step(observation, policy.initial_state(4000))
        distribution = policy.get_distribution(observation)
    assert step.actions.float().mean().item() == pytest.approx(distribution.distribution.probs[0, 1].item(), abs=0.03)
    torch.testing.assert_close(step.log_probs, distribution.log_prob(step.actions))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_saved_policy_continues_as_it_was(tiny_model, tmp_path, episodes, skip, shared):
    memory = {"embedding_dim": 12, "num_blocks": 1, "num_heads": 3, "slstm_at": (0,), "skip": skip}
    options = {"memory": memory, "net_arch": [5], "share_features_extractor": shared}
    policy = tiny_model(policy_kwargs=options).policy
    policy.save(tmp_path / "policy.pt")
    loaded = MlpPolicy.load(tmp_path / "policy.pt", device="cpu")
    assert loaded.share_features_extractor == shared
    for ours, theirs in zip(evaluate(policy, episodes), evaluate(loaded, episodes), strict=True):
        assert torch.equal(ours, theirs)


def test_without_skip_the_networks_see_the_memory_alone(tiny_model):
    wide, narrow = (tiny_model(policy_kwargs={"memory": {"embedding_dim": 8, "skip": s}}).policy for s in (True, False))
    widths = [policy.mlp_extractor.policy_net[0].in_features for policy in (wide, narrow)]
    assert widths == [10, 8]


def test_a_fresh_memory_is_sb3s_own_contract(policy, episodes):
    observation = torch.from_numpy(episodes[0][:, 0])
    with torch.no_grad():
        actions, values, log_probs = policy(observation, deterministic=True)
        distribution = policy.get_distribution(observation)
        assert torch.equal(values, policy.predict_values(observation))
    assert torch.equal(actions, distribution.mode())
    torch.testing.assert_close(log_probs, distribution.log_prob(actions))


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("MlpPolicy", spaces.Discrete(4)),
        ("MlpPolicy", spaces.MultiDiscrete([3, 2])),
        ("MlpPolicy", spaces.MultiBinary(3)),
        ("MlpPolicy", spaces.Box(-1, 1, (2, 3), np.float32)),
        ("CnnPolicy", spaces.Box(0, 255, (36, 36, 3), np.uint8)),
        ("MultiInputPolicy", spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)})),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_observation_space_of_sb3_trains_and_predicts(tiny_model, drift_env, name, space):
    env: VecEnv = drift_env(length=3, observation_space=space)
    options = {"features_extractor_kwargs": {"features_dim": 8}} if name == "CnnPolicy" else {}
    model = tiny_model(env, policy=name, policy_kwargs=options, n_steps=8, n_epochs=1).learn(16)
    assert model.logger.name_to_value["train/replay_gap"] < 1e-5
    action, _ = model.predict(env.reset())
    assert len(action) == env.num_envs


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(3),
        spaces.Box(-2, 2, (2,), np.float32),
        spaces.Box(-2, 2, (2, 2), np.float32),
    ],
    ids=str,
)
def test_every_action_space_of_sb3_trains_and_predicts(tiny_model, drift_env, space):
    env = drift_env(length=3, action_space=space)
    model = tiny_model(env, n_steps=8, n_epochs=1).learn(16)
    assert model.logger.name_to_value["train/replay_gap"] < 1e-5
    action, _ = model.predict(env.reset())
    assert space.contains(action[0])


@pytest.mark.parametrize("squash", [True, False])
def test_state_dependent_exploration_trains_and_stays_in_bounds(tiny_model, drift_env, squash):
    env = drift_env(action_space=spaces.Box(-2, 1, (2,), np.float32))
    options = {"squash_output": squash, "log_std_init": 1.0}
    model = tiny_model(env, use_sde=True, sde_sample_freq=3, n_steps=8, policy_kwargs=options).learn(16)
    action, _ = model.predict(env.reset())
    assert env.action_space.contains(action[0])


def test_predicting_again_and_again_without_the_state_warns_once(policy):
    observation = np.zeros((B, 2), np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            policy.predict(observation)
    assert ["predict was called again without its state" in str(w.message) for w in caught] == [True]


def test_predicting_with_the_state_or_at_an_episodes_start_does_not_warn(policy):
    observation = np.zeros((B, 2), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            _, state = policy.predict(observation)
            policy.predict(observation, state)
            policy.predict(observation, None, np.ones(B, bool))


@pytest.mark.parametrize("cell", ["lstm", "gru", "slstm"])
def test_every_cell_reads_choices(tiny_model, drift_env, cell):
    """SB3 gives the width of a MultiDiscrete space as NumPy's integer."""
    env = drift_env(observation_space=spaces.MultiDiscrete([3, 2]))
    tiny_model(env, policy_kwargs={"memory": {"cell": cell, "embedding_dim": 8}}).learn(32)
