"""Policies without their package: arrays for ``NumpyActor``, or an ONNX graph, tried where they are written.

Shapes: B batch, N floats of state.
"""

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch import Tensor, nn

from xlstm_rl.inputs import stack_observations
from xlstm_rl.mlp_policy import MlpPolicy
from xlstm_rl.numpy_actor import NumpyActor, choose, memory_step
from xlstm_rl.portable import portable_action, portable_memory, portable_policy

TOLERANCE = 1e-4  # float32 in another order of sums, over a few steps
STEPS, BATCH = 6, 3  # what an export is tried with

Act = Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def export_numpy(policy: MlpPolicy, path: str | Path) -> None:
    """Write what acts to ``path`` (.npz), for ``NumpyActor.load``; ``numpy_actor.py`` can be deployed by itself.

    Raises:
        NotPortableError: a part that NumPy has no form for, such as a convolutional features extractor.
        ValueError: what was written does not act as the policy does.
    """
    spec, arrays = portable_policy(policy)
    with open(path, "wb") as file:  # savez would change the name
        np.savez(file, spec=np.array(json.dumps(spec)), **arrays)  # type: ignore[arg-type]
    check_parity(policy, NumpyActor.load(path))


def export_onnx(policy: MlpPolicy, path: str | Path) -> None:
    """Write a graph from observation, state, episode_start to action, next_state; needs the extra ``onnx``.

    It takes any batch. A dictionary of observations has an input for each key; images have their channels first. Where
    ``episode_start`` is true the state is not read: that is how the first call begins, with zeros (B, N), and the only
    one with ``reset_on_done=False``. Any features extractor that torch can export will do.

    Raises:
        NotPortableError: a memory of other blocks than the paper's.
        ValueError: a package is missing, or what was written does not act as the policy does.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"export_onnx needs the package {name}: pip install xlstm-toolkit[onnx]")
    graph = _ActingGraph(copy.deepcopy(policy).cpu()).eval()
    obs, _ = policy.obs_to_tensor(_sample(policy))
    obs = {key: value.cpu() for key, value in obs.items()} if isinstance(obs, dict) else obs.cpu()
    state, starts = graph.fresh.repeat(BATCH, 1), th.zeros(BATCH, dtype=th.bool)
    batch = {0: th.export.Dim("batch")}
    names = [*obs] if isinstance(obs, dict) else ["observation"]
    th.onnx.export(
        graph,
        (obs, state, starts),
        str(path),
        input_names=[*names, "state", "episode_start"],
        output_names=["action", "next_state"],
        dynamic_shapes=(dict.fromkeys(obs, batch) if isinstance(obs, dict) else batch, batch, batch),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    check_parity(policy, _onnx_actor(path, names))


def check_parity(policy: MlpPolicy, act: Act) -> None:
    """Raise ValueError unless ``act`` does what the policy's ``predict`` does, over a few steps and a reset."""
    ours, theirs = policy.memory.actor.initial_state(BATCH).cpu().numpy(), None
    size = ours.shape[1]  # a critic's memory does not act
    for step in range(STEPS):
        observation = _sample(policy)
        ends = policy.reset_on_done and step == STEPS // 2
        starts = np.array([step == 0, step == 0 or ends, step == 0])
        action, ours = act(observation, ours, starts)
        expected, theirs = policy.predict(observation, theirs, episode_start=starts, deterministic=True)
        for name, got, wanted in (("action", action, expected), ("state", ours, theirs[0][:, :size])):
            if not np.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                gap = np.abs(np.asarray(got, np.float64) - wanted).max()
                raise ValueError(f"the exported policy's {name} differs from predict's by {gap:.1e} at step {step}")


class _ActingGraph(nn.Module):
    """The policy's extractor and networks around the memory's step, which is written once for NumPy and torch."""

    fresh: Tensor

    def __init__(self, policy: MlpPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.memory_spec, _ = portable_memory(policy.memory.actor)
        self.action_spec, bounds = portable_action(policy)
        self.weights = dict(policy.memory.actor.named_parameters())
        self.low, self.high = (th.from_numpy(bounds[name]) if bounds else th.empty(0) for name in ("low", "high"))
        self.register_buffer("fresh", policy.memory.actor.initial_state(1))

    def forward(self, observation: Any, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        policy = self.policy
        features = policy.extract_features(observation)
        features = policy.feature_norm(features[0] if isinstance(features, tuple) else features)
        state = th.where(episode_start[:, None], self.fresh, state)
        latent, state = memory_step(th, self.weights, self.memory_spec, features, state)
        if policy.memory.skip:
            latent = th.cat([features, latent], dim=1)
        outputs = policy.action_net(policy.mlp_extractor.forward_actor(latent))
        return choose(th, self.action_spec, outputs, self.low, self.high), state


def _onnx_actor(path: str | Path, names: list[str]) -> Act:
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    kinds = {given.name: given.type for given in session.get_inputs()}

    def act(observation: Any, state: np.ndarray, episode_start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = observation if isinstance(observation, dict) else {names[0]: observation}
        feed = {name: np.asarray(parts[name]).astype(_DTYPES[kinds[name]]) for name in names}
        action, after = session.run(None, {**feed, "state": state, "episode_start": episode_start})
        return action, after

    return act


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


def _sample(policy: MlpPolicy) -> Any:
    """Observations (B, ...) of the policy's space; those without bounds are drawn near zero."""
    return stack_observations([policy.observation_space.sample() for _ in range(BATCH)])
