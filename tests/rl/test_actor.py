"""Actors for deployment: compiled, NumPy alone, ONNX, a CUDA graph."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import xlstm_rl.numpy_actor
from tests.rl.conftest import TINY
from xlstm_rl.actor import CompiledActor, TorchActor
from xlstm_rl.export import check_parity, export_numpy, export_onnx
from xlstm_rl.portable import NotPortableError

DICT = spaces.Dict(
    {"b": spaces.MultiDiscrete([2, 3]), "a": spaces.Box(-1, 1, (2, 2), np.float32), "c": spaces.Discrete(3)}
)
POLICIES = {
    "xlstm": {},
    "wide xlstm": {"memory": {"embedding_dim": 32, "num_blocks": 2, "slstm_at": (1,)}},
    "rms, no convolution": {"memory": {**TINY, "norm": "rms", "conv_kernel_size": 0, "learnable_skip": False}},
    "tirex": {"memory": {**TINY, "slstm_at": "0:1", "slstm_block": "tirex", "forget_gate": "exponential"}},
    "lstm": {"memory": {"cell": "lstm", "embedding_dim": 8, "num_blocks": 2}},
    "gru": {"memory": {"cell": "gru", "embedding_dim": 8, "num_blocks": 2}},
    "alone": {"memory": {**TINY, "skip": False, "critic": "separate"}, "activation_fn": nn.ReLU},
    "unscaled": {"normalize": False, "activation_fn": nn.GELU},
    "over episodes": {"memory": {**TINY, "reset_on_done": False}},
}


@pytest.fixture
def trained(tiny_model, drift_env):
    """A policy that has learnt a little: weights and scales are no longer those of the start."""

    def make(observation_space=None, action_space=None, policy="MlpPolicy", **options):
        env = drift_env(observation_space=observation_space, action_space=action_space)
        return tiny_model(env, policy, n_epochs=1, learning_rate=0.01, **options).learn(64)

    return make


@pytest.mark.parametrize("options", POLICIES.values(), ids=list(POLICIES))
def test_every_actor_does_what_the_policy_does(trained, options, tmp_path):
    model = trained(policy_kwargs=options)
    check_parity(model.policy, CompiledActor(model.policy))
    check_parity(model.policy, lambda obs, state, start: act_in_torch(TorchActor(model.policy, 3), obs, state, start))
    model.export_numpy(tmp_path / "actor.npz")  # checks itself


def act_in_torch(actor, observation, state, start):
    missing = actor.initial_state(len(start)).shape[1] - state.shape[1]
    given = torch.cat([torch.from_numpy(state), torch.zeros(len(start), missing)], dim=1)
    action, after = actor(observation, given, start)
    return action, after[:, : state.shape[1]].numpy()


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        (DICT, spaces.Discrete(3)),
        (spaces.Discrete(4), spaces.MultiDiscrete([3, 2])),
        (spaces.MultiBinary(3), spaces.MultiBinary(2)),
        (spaces.Box(0, 255, (2, 3), np.uint8), spaces.Box(-2, 2, (2, 2), np.float32)),
    ],
    ids=lambda space: type(space).__name__,
)
def test_every_space_has_a_form_in_numpy(trained, observation_space, action_space, tmp_path):
    policy = "MultiInputPolicy" if observation_space is DICT else "MlpPolicy"
    model = trained(observation_space, action_space, policy)
    model.export_numpy(tmp_path / "actor.npz")
    action, _ = model.actor()(observation_space.sample())
    assert action_space.contains(action)


@pytest.mark.parametrize("squash", [True, False])
def test_state_dependent_exploration_acts_by_its_mean(trained, squash, tmp_path):
    space = spaces.Box(-2, 1, (2,), np.float32)
    trained(None, space, use_sde=True, policy_kwargs={"squash_output": squash}).export_numpy(tmp_path / "actor.npz")


def test_numpy_alone_runs_the_file_and_what_was_exported(trained, tmp_path):
    """In a process that can import neither torch nor this package."""
    model = trained()
    model.export_numpy(tmp_path / "actor.npz")
    (tmp_path / "acting.py").write_bytes(Path(xlstm_rl.numpy_actor.__file__).read_bytes())
    script = (
        "import sys; sys.modules.update(torch=None, xlstm_rl=None, gymnasium=None); import numpy; import acting\n"
        "action, state = acting.NumpyActor.load('actor.npz')(numpy.ones(2, numpy.float32))\n"
        "print(action, state.sum())"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    action, (state,) = model.predict(np.ones(2, np.float32), deterministic=True)
    assert run.stdout.split()[0] == str(action)
    assert float(run.stdout.split()[1]) == pytest.approx(state.sum(), rel=1e-4)


def test_one_observation_gives_one_action_and_the_state_leads_on(trained):
    model = trained()
    actor, state, expected = model.actor(), None, None
    for step in range(5):
        observation = np.full(2, step, np.float32)
        action, state = actor(observation, state, episode_start=step == 3)
        wanted, expected = model.predict(observation, expected, np.array([step == 3]), deterministic=True)
        assert action.shape == ()
        assert action == wanted
        np.testing.assert_allclose(state, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [CompiledActor, lambda policy: TorchActor(policy, 2)], ids=["NumPy", "torch"])
@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=str)
def test_an_actor_takes_masks(trained, kind, space):
    model = trained(None, space)
    actor, rng = kind(model.policy), np.random.default_rng(0)
    observations = rng.normal(size=(2, 2)).astype(np.float32)
    masks = np.array(
        {3: [[0, 0, 1], [1, 0, 0]], 5: [[0, 1, 0, 0, 1]] * 2, 4: [[1, 0, 0, 1], [0, 1, 0, 1]]}[sum_of(space)]
    )
    action, _ = actor(observations, action_masks=masks)
    expected, _ = model.predict(observations, deterministic=True, action_masks=masks)
    np.testing.assert_array_equal(action, expected)


def sum_of(space):
    return {spaces.Discrete: 3, spaces.MultiDiscrete: 5, spaces.MultiBinary: 4}[type(space)]


def test_a_convolutional_policy_acts_by_its_own_modules(trained):
    space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    model = trained(space, None, "CnnPolicy", policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}})
    actor = model.actor(n_envs=3)
    assert isinstance(actor, TorchActor)
    with pytest.raises(NotPortableError, match="no form of the features extractor NatureCNN"):
        model.export_numpy("nowhere.npz")


def test_an_actor_keeps_what_it_was_made_of(trained):
    model = trained()
    actor, observation = model.actor(), np.ones(2, np.float32)
    _, before = actor(observation)
    model.learn(64)
    np.testing.assert_array_equal(actor(observation)[1], before)


@pytest.mark.parametrize("kind", [CompiledActor, lambda policy: TorchActor(policy, 1)], ids=["NumPy", "torch"])
@pytest.mark.parametrize(
    "carry", [copy.deepcopy, lambda actor: pickle.loads(pickle.dumps(actor))], ids=["copy", "pickle"]
)
def test_an_actor_can_be_sent_to_another_process(trained, kind, carry):
    actor, observation = kind(trained(policy_kwargs=POLICIES["wide xlstm"]).policy), np.ones(2, np.float32)
    twin = carry(actor)
    for _ in range(2):
        np.testing.assert_array_equal(twin(observation)[1], actor(observation)[1])


def test_an_export_that_acts_otherwise_is_refused(trained):
    model = trained()
    actor = CompiledActor(model.policy)
    with pytest.raises(ValueError, match=r"the exported policy's state differs from predict's by .* at step 0"):
        check_parity(model.policy, lambda obs, state, start: (actor(obs, state, start)[0], state + 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.actor(n_envs=0), "n_envs must be >= 1, got 0"),
        (lambda model: model.actor()(np.ones(5)), r"the observation must be \(2,\), or a batch of these, got .*\(5,\)"),
        (lambda model: model.actor()(np.ones(2), np.zeros((1, 3))), r"state must be \(1, \d+\), got \(1, 3\)"),
        (lambda model: model.actor()(np.ones(2), model.predict(np.ones(2))[1]), r"state must be .*, got \(1, 1, \d+\)"),
        (lambda model: model.actor()((np.ones(2), {})), "observation is a tuple, as Gym's reset returns it"),
        (lambda model: flagged(model.actor(), np.zeros(3)), "one flag for each of 2 rows, got 3"),
        (lambda model: model.actor()(np.ones((2, 2)), action_masks=np.ones((2, 1))), r"\(2, 2\) .*got shape \(2, 1\)"),
    ],
)
def test_wrong_arguments_are_named(trained, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained())


def flagged(actor, flags):
    return actor(np.ones((2, 2)), actor.initial_state(2), episode_start=flags)


def test_continuous_actions_have_no_masks(trained):
    actor = trained(None, spaces.Box(-1, 1, (2,), np.float32)).actor()
    with pytest.raises(ValueError, match=r"action_masks must be \(1, 0\) for box actions, got shape \(2,\)"):
        actor(np.ones(2), action_masks=np.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": {**TINY, "input_gate": "sigmoid"}}, "input_gate='sigmoid'"),
        ({"activation_fn": nn.Softsign}, "the actor's layer Softsign"),
    ],
)
def test_what_numpy_has_no_form_for_is_named(trained, options, message, tmp_path):
    with pytest.raises(NotPortableError, match=message):
        export_numpy(trained(policy_kwargs=options).policy, tmp_path / "actor.npz")


@pytest.mark.parametrize("name", ["xlstm", "lstm", "over episodes"])
def test_an_onnx_graph_acts_for_any_batch(trained, name, tmp_path):
    session_of = pytest.importorskip("onnxruntime").InferenceSession
    model = trained(policy_kwargs=POLICIES[name])
    export_onnx(model.policy, tmp_path / "actor.onnx")  # checks itself
    session, observations = session_of(str(tmp_path / "actor.onnx")), np.ones((5, 2), np.float32)
    expected, (state,) = model.predict(observations, deterministic=True)
    given = {"observation": observations, "state": np.zeros_like(state), "episode_start": np.ones(5, bool)}
    action, after = session.run(None, given)
    np.testing.assert_array_equal(action, expected)
    np.testing.assert_allclose(after, state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["MultiInputPolicy", "CnnPolicy"])
def test_an_onnx_graph_has_the_extractor_in_it(trained, name, tmp_path):
    pytest.importorskip("onnxruntime")
    space = DICT if name == "MultiInputPolicy" else spaces.Box(0, 255, (3, 36, 36), np.uint8)
    action_space = spaces.Box(-2, 2, (2,), np.float32)
    options = {"features_extractor_kwargs": {"features_dim": 8}} if name == "CnnPolicy" else {}
    model = trained(space, action_space, name, policy_kwargs={**options, **POLICIES["gru"]})
    model.export_onnx(tmp_path / "actor.onnx")


@pytest.mark.gpu
def test_a_captured_graph_acts_as_the_policy(trained):
    model = trained(device="cuda")
    actor = model.actor(n_envs=3)
    state, expected = None, None
    for step in range(5):
        observations = np.random.default_rng(step).normal(size=(3, 2)).astype(np.float32)
        starts = np.array([False, step == 2, False])
        action, state = actor(observations, state, starts)
        wanted, expected = model.predict(observations, expected, starts, deterministic=True)
        np.testing.assert_array_equal(action, wanted)
        np.testing.assert_allclose(state.cpu(), expected[0], rtol=1e-3, atol=1e-4)
