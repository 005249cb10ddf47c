"""The actor-critic policy with memory: features extractor -> memory -> SB3's actor and critic networks.

Shapes: B batch, S sequence, F features, D memory output, N floats of packed state, A flags of an action mask. Flat
arrays (B * S, ...) run through a whole sequence, then the next.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from xlstm_kernels import TanhStepper
from xlstm_rl.actor_critic import ActorCriticMemory, Recollection
from xlstm_rl.config import MemoryConfig, check_contrib_options
from xlstm_rl.distributions import mask_distribution, quicker
from xlstm_rl.inputs import Observation, StatelessCalls, as_flags, as_masks, as_state, batch_size_of, check_observation
from xlstm_rl.networks import actor_latent, critic_latent, latents, snapshot
from xlstm_rl.normalization import FeatureNorm, ReturnScale
from xlstm_rl.optim import ClippedAdam
from xlstm_rl.sequences import Sequences


class PolicyStep(NamedTuple):
    """One step of B environments: ``actions``, ``values`` (B, 1), ``log_probs`` (B,), and the memory after it."""

    actions: th.Tensor
    values: th.Tensor
    log_probs: th.Tensor
    state: th.Tensor


class MlpPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy with a memory between the features extractor and the networks of actor and critic.

    With ``share_features_extractor=False`` a memory that actor and critic share reads the actor's features.

    Args:
        observation_space: observation space.
        action_space: action space.
        lr_schedule: learning rate schedule.
        memory: options of the memory: ``cell="xlstm"``, ``embedding_dim=64``, ``num_blocks=1``, ``critic="shared"``,
            ``skip``, ``reset_on_done``, and for xLSTM cells ``scale`` and any field of ``xLSTMConfig``: see
            ``MemoryConfig``.
        normalize: keep running scales of the returns, and of the features where the extractor learns nothing, inside
            the policy, so that it learns alike in any units. They change between rollouts only and are saved with it.
        optimizer_class, optimizer_kwargs: as SB3's, but the default is an Adam in fewer and larger operations, which
            takes a third of the time for a policy of this size.
        kwargs: SB3's own options of ``ActorCriticPolicy``: ``net_arch``, ``activation_fn``, ...

    Raises:
        ValueError: an unknown memory option, or sizes that the memory refuses.
        TypeError: an option of sb3-contrib's recurrent policies, with the one that stands for it here.

    >>> model = xLSTMPPO("MlpPolicy", env, policy_kwargs=dict(memory=dict(embedding_dim=64), net_arch=[64]))
    """

    memory: ActorCriticMemory
    _stepper: TanhStepper | None = None  # while steps are taken

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        memory: dict[str, Any] | None = None,
        normalize: bool = True,
        optimizer_class: type[th.optim.Optimizer] = ClippedAdam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_contrib_options(kwargs)
        self.memory_options = {} if memory is None else memory
        self.normalize = normalize
        if optimizer_kwargs is None and issubclass(optimizer_class, th.optim.Adam):
            optimizer_kwargs = {"eps": 1e-5}  # as SB3 has it
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )
        self._stateless_calls = StatelessCalls()
        if isinstance(self.action_dist, StateDependentNoiseDistribution):
            self.reset_noise()  # SB3's first noise has a graph

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.normalize:
            # Zero is zero in all units: any other values would drown small rewards in the first returns
            nn.init.zeros_(self.value_net.weight)
            nn.init.zeros_(self.value_net.bias)

    def _build_mlp_extractor(self) -> None:
        self.action_dist = quicker(self.action_dist)
        config = MemoryConfig.from_options(self.memory_options)
        # What an extractor learns has no fixed scale to follow.
        fixed = next(self.features_extractor.parameters(), None) is None
        self.feature_norm = FeatureNorm(self.features_dim) if self.normalize and fixed else nn.Identity()
        self.return_scale = ReturnScale()
        self.reset_on_done = config.reset_on_done
        self.memory = ActorCriticMemory(self.features_dim, config)
        self.mlp_extractor = MlpExtractor(self.memory.output_dim, self.net_arch, self.activation_fn, device=self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "memory": self.memory_options,
            "normalize": self.normalize,
            # SB3 leaves it out, so that a policy with two extractors would not load
            "share_features_extractor": self.share_features_extractor,
        }

    @property
    def device(self) -> th.device:
        """SB3's, without its walk over all modules, which takes longer than a step of the memory."""
        scale = self._modules.get("return_scale")
        return super().device if scale is None else cast(ReturnScale, scale).mean.device

    @th.no_grad()
    def reset_noise(self, n_envs: int = 1) -> None:
        """SB3's, without a graph: nothing asks for its gradient, and a policy that holds one cannot be copied."""
        super().reset_noise(n_envs)

    def initial_state(self, batch_size: int) -> th.Tensor:
        """The memory (B, N) of ``batch_size`` environments at the start of an episode."""
        return self.memory.initial_state(batch_size)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Within it, single steps without gradients read a snapshot of memory and networks: for rollouts."""
        self._stepper = snapshot(self.mlp_extractor)
        try:
            with self.memory.stepping():
                yield
        finally:
            self._stepper = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stepper": None}  # a copy learns by itself

    def step(
        self,
        obs: PyTorchObs,
        state: th.Tensor,
        episode_starts: np.ndarray | th.Tensor | None = None,
        *,
        deterministic: bool = False,
        action_masks: np.ndarray | th.Tensor | None = None,
    ) -> PolicyStep:
        """Act in B environments at once, and carry the memory on.

        Args:
            obs: observations (B, ...).
            state: the memory before this step, (B, N).
            episode_starts: (B,) bool, the rows that forget ``state`` before they read ``obs``; None for no row.
            deterministic: the most likely action instead of a sample.
            action_masks: (B, A) bool, the actions that are allowed; None for all.
        """
        recollection = self._recall(obs, state, self._resets(episode_starts, state))
        pi, vf = latents(self.mlp_extractor, recollection.pi, recollection.vf, self._stepper)
        distribution = self._distribution(pi, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        log_probs = distribution.log_prob(actions)
        return PolicyStep(self._shaped(actions), self._values(vf), log_probs, recollection.state)

    def act(
        self,
        obs: PyTorchObs,
        state: th.Tensor,
        episode_starts: np.ndarray | th.Tensor | None = None,
        *,
        deterministic: bool = False,
        action_masks: np.ndarray | th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """The actions and the memory of ``step``, without what only training needs."""
        recollection = self._recall(obs, state, self._resets(episode_starts, state))
        distribution = self._distribution(actor_latent(self.mlp_extractor, recollection.pi), action_masks)
        return self._shaped(distribution.get_actions(deterministic=deterministic)), recollection.state

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """SB3's contract: actions, values and log-probabilities for the first step of an episode (a fresh memory)."""
        step = self.step(obs, self.initial_state(batch_size_of(obs)), deterministic=deterministic)
        return step.actions, step.values, step.log_probs

    def evaluate_actions(  # type: ignore[override]
        self, obs: Sequences, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Values, log-probabilities and entropy (each flat, B * S) of the ``actions`` taken along sequences."""
        state = obs.states
        if obs.burn_in is not None:
            rows, observations, starts = obs.burn_in
            state = state.index_copy(0, rows, self.read(observations, state[rows], starts))
        recollection = self._recall(obs.observations, state, obs.episode_starts)
        pi, vf = latents(self.mlp_extractor, recollection.pi, recollection.vf)
        distribution = self._distribution(pi, obs.action_masks)
        return self._values(vf), distribution.log_prob(actions), distribution.entropy()

    @th.no_grad()
    def read(self, obs: PyTorchObs, state: th.Tensor, episode_starts: th.Tensor) -> th.Tensor:
        """The memory (B, N) after flat observations (B * S, ...) with ``episode_starts`` (B, S), without gradients."""
        return self._recall(obs, state, episode_starts).state

    def get_distribution(self, obs: PyTorchObs, state: th.Tensor | None = None) -> Distribution:
        """The action's distribution after reading ``obs`` (B, ...) with the memory ``state`` (None: a fresh one)."""
        state = self.initial_state(batch_size_of(obs)) if state is None else state
        return self._distribution(actor_latent(self.mlp_extractor, self._recall(obs, state).pi))

    def predict_values(self, obs: PyTorchObs, state: th.Tensor | None = None) -> th.Tensor:
        """The value (B, 1) after reading ``obs`` (B, ...) with the memory ``state`` (None: a fresh one)."""
        state = self.initial_state(batch_size_of(obs)) if state is None else state
        return self._values(critic_latent(self.mlp_extractor, self._recall(obs, state).vf))

    def _recall(self, obs: PyTorchObs, state: th.Tensor, resets: th.Tensor | None = None) -> Recollection:
        """What the networks of actor and critic read, flat, of flat observations (B * S, ...) and states (B, N)."""
        features = self.extract_features(obs)
        if isinstance(features, tuple):
            pi_features, vf_features = (self.feature_norm(part) for part in features)
        else:
            pi_features = vf_features = self.feature_norm(features)
        B = state.shape[0]
        pi_rows = pi_features.unflatten(0, (B, -1))  # (B, S, F)
        vf_rows = pi_rows if vf_features is pi_features else vf_features.unflatten(0, (B, -1))
        pi, vf, state = self.memory(pi_rows, vf_rows, state, resets if self.reset_on_done else None)
        pi_flat = pi.flatten(0, 1)
        return Recollection(pi_flat, pi_flat if vf is pi else vf.flatten(0, 1), state)

    def _resets(self, episode_starts: np.ndarray | th.Tensor | None, state: th.Tensor) -> th.Tensor | None:
        flags = as_flags(episode_starts, state.shape[0], state.device)
        return None if flags is None else flags[:, None]

    def _distribution(self, latent: th.Tensor, action_masks: np.ndarray | th.Tensor | None = None) -> Distribution:
        distribution = self._get_action_dist_from_latent(latent)
        if action_masks is None:
            return distribution
        allowed = as_masks(action_masks, self.action_space, len(latent), latent.device)
        return mask_distribution(distribution, allowed)

    def _shaped(self, actions: th.Tensor) -> th.Tensor:
        assert self.action_space.shape is not None
        return actions.reshape(-1, *self.action_space.shape)

    def _values(self, latent: th.Tensor) -> th.Tensor:
        return self.return_scale(self.value_net(latent))

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
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """SB3's contract: the action for an observation, and the memory to pass on with the next one.

        Args:
            observation: one observation, or a batch of them as a VecEnv returns it.
            state: what the previous call returned; None for a fresh memory.
            episode_start: (B,) bool, or one for all, the rows that begin an episode here; None for no row.
            deterministic: the most likely action instead of a sample.
            action_masks: (B, A) bool, the actions that are allowed; None for all.

        Returns:
            The actions, clipped or scaled to the action space, and the state: a tuple of one float32 array (B, N).

        Raises:
            ValueError: an observation of the wrong space; a state, flags or masks of the wrong batch size.

        >>> obs, state, start = env.reset(), None, np.ones(env.num_envs, dtype=bool)
        >>> while True:
        ...     action, state = model.predict(obs, state, episode_start=start, deterministic=True)
        ...     obs, reward, start, info = env.step(action)
        """
        if self.training:
            self.set_training_mode(False)
        self._stateless_calls.count(state, episode_start)
        check_observation(observation, self.observation_space)
        obs, vectorized = self.obs_to_tensor(observation)
        with th.inference_mode():
            given = self.as_memory(state, batch_size_of(obs))
            sampled, after = self.act(obs, given, episode_start, deterministic=deterministic, action_masks=action_masks)
        actions = self.to_env_actions(sampled.cpu().numpy())
        return actions if vectorized else actions.squeeze(axis=0), (after.cpu().numpy(),)

    def as_memory(self, state: tuple[np.ndarray | th.Tensor, ...] | None, batch_size: int) -> th.Tensor:
        """What ``predict`` returned as a memory (B, N), a fresh one where there is none; see ``as_state``."""
        if state is None:
            return self.initial_state(batch_size)
        return as_state(state, batch_size, self.memory.state_size, self.device)

    def to_env_actions(self, actions: np.ndarray) -> np.ndarray:
        """The distribution's actions (B, ...) brought into the bounds of the action space."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.squash_output:
            return self.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)
