"""Actor-critic policies with memory: features extractor -> xLSTM -> SB3's actor and critic networks.

Shapes: B batch, S sequence, F features, D memory output. Flat arrays (B * S, ...) run through a whole sequence, then
the next.
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    MlpExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from xlstm_rl.memory import Memory, MemoryConfig, MemoryState
from xlstm_rl.normalization import FeatureNorm, ReturnScale
from xlstm_rl.sequences import Sequences

Observation = np.ndarray | dict[str, np.ndarray]


class PolicyStep(NamedTuple):
    """One step of B environments: ``actions``, ``values`` (B, 1), ``log_probs`` (B,), and the memory after it."""

    actions: th.Tensor
    values: th.Tensor
    log_probs: th.Tensor
    state: MemoryState


class _Latents(NamedTuple):
    pi: th.Tensor
    vf: th.Tensor
    state: MemoryState


class MlpPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy with an xLSTM between the features extractor and the networks of actor and critic.

    Actor and critic share the memory, so large returns let the critic's loss drown the actor's: scale the rewards
    (``VecNormalize``). With ``share_features_extractor=False`` the memory reads the actor's features.

    Args:
        observation_space: observation space.
        action_space: action space.
        lr_schedule: learning rate schedule.
        memory: options of the memory: ``cell="xlstm"``, ``skip``, and any field of ``xLSTMConfig``
            (``embedding_dim``, ``num_blocks``, ``num_heads``, ``slstm_at``, ...).
        normalize: keep running scales of the returns, and of the features where the extractor learns nothing, inside
            the policy, so that it learns alike in any units. They change between rollouts only and are saved with it.
        kwargs: SB3's own options of ``ActorCriticPolicy``: ``net_arch``, ``activation_fn``, ...

    Raises:
        ValueError: an unknown memory option, or sizes that the memory refuses.

    >>> model = xLSTMPPO("MlpPolicy", env, policy_kwargs=dict(memory=dict(embedding_dim=64), net_arch=[64]))
    """

    memory: Memory

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        memory: dict[str, Any] | None = None,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        self.memory_options = dict(memory or {})
        self.normalize = normalize
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build_mlp_extractor(self) -> None:
        config = MemoryConfig.from_options(self.memory_options)
        self.memory_skip = config.skip
        # What an extractor learns has no fixed scale to follow.
        fixed = next(self.features_extractor.parameters(), None) is None
        self.feature_norm = FeatureNorm(self.features_dim) if self.normalize and fixed else nn.Identity()
        self.return_scale = ReturnScale()
        self.memory = Memory(self.features_dim, config)
        width = self.memory.output_dim + (self.features_dim if config.skip else 0)
        self.mlp_extractor = MlpExtractor(width, self.net_arch, self.activation_fn, device=self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "memory": self.memory_options,
            "normalize": self.normalize,
            # SB3 leaves it out, so that a policy with two extractors would not load
            "share_features_extractor": self.share_features_extractor,
        }

    def initial_state(self, batch_size: int) -> MemoryState:
        """The memory of ``batch_size`` environments at the start of an episode."""
        return self.memory.initial_state(batch_size)

    def step(
        self,
        obs: PyTorchObs,
        state: MemoryState,
        episode_starts: np.ndarray | None = None,
        *,
        deterministic: bool = False,
    ) -> PolicyStep:
        """Act in B environments at once, and carry the memory on.

        Args:
            obs: observations (B, ...).
            state: the memory before this step.
            episode_starts: (B,) bool, the rows that forget ``state`` before they read ``obs``; None for no row.
            deterministic: the most likely action instead of a sample.
        """
        latents = self._latents(obs, state, self._resets(episode_starts, _batch_size(obs)))
        actions, log_probs = _sample(self._get_action_dist_from_latent(latents.pi), deterministic=deterministic)
        assert self.action_space.shape is not None
        actions = actions.reshape(-1, *self.action_space.shape)
        return PolicyStep(actions, self._values(latents), log_probs, latents.state)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """SB3's contract: actions, values and log-probabilities for the first step of an episode (a fresh memory)."""
        step = self.step(obs, self.initial_state(_batch_size(obs)), deterministic=deterministic)
        return step.actions, step.values, step.log_probs

    def evaluate_actions(  # type: ignore[override]
        self, obs: Sequences, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Values, log-probabilities and entropy (each flat, B * S) of the ``actions`` taken along sequences."""
        latents = self._latents(obs.observations, self.memory.unpack(obs.states), obs.episode_starts)
        distribution = self._get_action_dist_from_latent(latents.pi)
        return self._values(latents), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs, state: MemoryState | None = None) -> Distribution:
        """The action's distribution after reading ``obs`` (B, ...) with the memory ``state`` (None: a fresh one)."""
        state = self.initial_state(_batch_size(obs)) if state is None else state
        return self._get_action_dist_from_latent(self._latents(obs, state).pi)

    def predict_values(self, obs: PyTorchObs, state: MemoryState | None = None) -> th.Tensor:
        """The value (B, 1) after reading ``obs`` (B, ...) with the memory ``state`` (None: a fresh one)."""
        state = self.initial_state(_batch_size(obs)) if state is None else state
        return self._values(self._latents(obs, state))

    def _latents(self, obs: PyTorchObs, state: MemoryState, resets: th.Tensor | None = None) -> _Latents:
        """Everything up to the output layers, for flat observations (B * S, ...) of the B rows in ``state``."""
        features = self.extract_features(obs)
        if isinstance(features, tuple):
            pi_features, vf_features = (self.feature_norm(part) for part in features)
        else:
            pi_features = vf_features = self.feature_norm(features)
        steps = 1 if resets is None else resets.shape[1]
        rows = pi_features.unflatten(0, (-1, steps))  # (B, S, F)
        output, state = self.memory(rows, state, resets)
        output = output.flatten(0, 1)  # (B * S, D)
        if self.memory_skip:
            pi = th.cat([pi_features, output], dim=1)
            vf = pi if vf_features is pi_features else th.cat([vf_features, output], dim=1)
        else:
            pi = vf = output
        return _Latents(self.mlp_extractor.forward_actor(pi), self.mlp_extractor.forward_critic(vf), state)

    def _values(self, latents: _Latents) -> th.Tensor:
        return self.return_scale(self.value_net(latents.vf))

    def observe_returns(self, returns: th.Tensor) -> None:
        """Follow the scale of a rollout's ``returns`` (M,), before training on them; no predicted value changes."""
        if self.normalize:
            self.return_scale.observe(returns, self.value_net)

    def observe_features(self, obs: PyTorchObs) -> None:
        """Follow the scale of a rollout's observations (M, ...), after training on them."""
        if isinstance(self.feature_norm, FeatureNorm):
            features = self.extract_features(obs)
            self.feature_norm.observe(features[0] if isinstance(features, tuple) else features)

    def predict(
        self,
        observation: Observation,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """SB3's contract: the action for an observation, and the memory to pass on with the next one.

        Args:
            observation: one observation, or a batch of them as a VecEnv returns it.
            state: what the previous call returned; None for a fresh memory.
            episode_start: (B,) bool, the rows that begin an episode with this observation; None for no row.
            deterministic: the most likely action instead of a sample.

        Returns:
            The actions, clipped or scaled to the action space, and the state: a tuple of one float32 array (B, N).

        Raises:
            ValueError: an observation of the wrong space, a state or ``episode_start`` of the wrong batch size.

        >>> obs, state, start = env.reset(), None, np.ones(env.num_envs, dtype=bool)
        >>> while True:
        ...     action, state = model.predict(obs, state, episode_start=start, deterministic=True)
        ...     obs, reward, start, info = env.step(action)
        """
        if self.training:
            self.set_training_mode(False)
        self._check_observation(observation)
        obs, vectorized = self.obs_to_tensor(observation)
        with th.inference_mode():
            memory_state = self.memory.from_numpy(state, _batch_size(obs))
            step = self.step(obs, memory_state, episode_start, deterministic=deterministic)
        actions = self.to_env_actions(step.actions.cpu().numpy())
        return actions if vectorized else actions.squeeze(axis=0), self.memory.to_numpy(step.state)

    def to_env_actions(self, actions: np.ndarray) -> np.ndarray:
        """The distribution's actions (B, ...) brought into the bounds of the action space."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.squash_output:
            return self.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def _check_observation(self, observation: Observation) -> None:
        if isinstance(observation, tuple):
            raise ValueError("observation is a tuple: Gym's reset returns (obs, info); pass obs alone")
        if isinstance(observation, dict) != isinstance(self.observation_space, spaces.Dict):
            raise ValueError(
                f"observation is a {type(observation).__name__}, but this policy was made for {self.observation_space}"
            )

    def _resets(self, episode_start: np.ndarray | None, batch_size: int) -> th.Tensor | None:
        """``episode_start`` as the memory's resets (B, 1); None where no row resets, which is cheaper."""
        if episode_start is None:
            return None
        starts = np.asarray(episode_start, dtype=bool)
        if starts.shape != (batch_size,):
            raise ValueError(
                f"episode_start must have one flag for each of the {batch_size} observations, got shape {starts.shape}"
            )
        if not starts.any():
            return None
        return th.as_tensor(starts[:, None], device=self.device)


class CnnPolicy(MlpPolicy):
    """``MlpPolicy`` for images: the features extractor is SB3's ``NatureCNN``."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class MultiInputPolicy(MlpPolicy):
    """``MlpPolicy`` for dictionaries of observations: the features extractor is SB3's ``CombinedExtractor``."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


def _batch_size(obs: PyTorchObs) -> int:
    return len(next(iter(obs.values())) if isinstance(obs, dict) else obs)


def _sample(distribution: Distribution, *, deterministic: bool) -> tuple[th.Tensor, th.Tensor]:
    """Actions and their log-probabilities."""
    if isinstance(distribution, CategoricalDistribution):
        # torch's sample and log_prob check their arguments at every call: 92 us for 8 CartPoles, this takes 43
        log_probs = distribution.distribution.logits  # normalised by torch
        scores = log_probs if deterministic else log_probs - th.empty_like(log_probs).exponential_().log()
        actions = scores.argmax(dim=1)
        return actions, log_probs.gather(1, actions[:, None]).squeeze(1)
    actions = distribution.get_actions(deterministic=deterministic)
    return actions, distribution.log_prob(actions)
