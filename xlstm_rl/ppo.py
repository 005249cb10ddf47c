"""PPO for policies with memory: Stable-Baselines3's algorithm on sequences that carry an xLSTM's state."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from xlstm_kernels import pack_state, select_state
from xlstm_rl.buffers import DictSequenceRolloutBuffer, SequenceRolloutBuffer
from xlstm_rl.memory import MemoryState
from xlstm_rl.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from xlstm_rl.sequences import plan_sequences

# CartPole without velocities at 100,000 steps, five seeds: 500 each; with a constant 3e-4 one of four fell back to 339.
LEARNING_RATE = LinearSchedule(7e-4, 7e-5, 1.0)
# A rollout of one environment and 128 steps is too little to learn from: 146 where 1,024 steps reach 500.
STEPS, ENVIRONMENTS = 128, 8


class xLSTMPPO(PPO):
    """PPO whose policy remembers: an xLSTM carries its state along each environment's steps.

    Training reads whole rows of the rollout (``n_steps`` of one environment), or chunks of ``seq_len`` steps, through
    the memory in one call, with the memory reset inside at episode starts. The state before the first step of each
    chunk is the one the rollout had there, detached: back-propagation through time ends at the chunk.

    The arguments are those of ``stable_baselines3.PPO``, and these.

    Args:
        policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of ``xlstm_rl.MlpPolicy``.
        learning_rate: a value or a schedule; falls from 7e-4 to a tenth of it over the training unless given.
        n_steps: steps of each environment in a rollout; None for 128, or as many times 128 as it takes fewer than 8
            environments to bring 1,024 together.
        batch_size: steps of a minibatch, a multiple of ``seq_len`` that divides ``n_steps * n_envs``;
            None for four minibatches an epoch, fewer where the sequences do not divide by four.
        seq_len: steps through which gradients flow back, a divisor of ``n_steps``; None for whole rows where
            ``n_steps`` is given, else 128.
        policy_kwargs: SB3's, and ``memory``, a dictionary: see ``MlpPolicy``.

    Raises:
        ValueError: sizes that do not divide, a policy without memory, an unknown memory option.

    >>> env = make_vec_env("CartPoleNoVel-v1", n_envs=8)
    >>> model = xLSTMPPO("MlpPolicy", env, policy_kwargs=dict(memory=dict(embedding_dim=64)))
    >>> model.learn(100_000)
    >>> action, state = model.predict(obs, state, episode_start=start, deterministic=True)
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: MlpPolicy
    rollout_buffer: SequenceRolloutBuffer

    def __init__(
        self,
        policy: str | type[MlpPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = LEARNING_RATE,
        n_steps: int | None = None,
        batch_size: int | None = None,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        seq_len: int | None = None,
    ) -> None:
        if n_steps is not None:
            plan_sequences(n_steps, 1, seq_len=seq_len, batch_size=None)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps or STEPS,
            # A size that SB3 has nothing to say about: _check_settings judges the real one
            batch_size=max(n_steps or STEPS, 2),
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.batch_size = batch_size  # type: ignore[assignment]
        if n_steps is None:
            n_envs = 1 if self.env is None else self.env.num_envs  # loading sets the environment later, and n_steps
            self.n_steps = STEPS * -(-ENVIRONMENTS // n_envs)
            seq_len = seq_len or STEPS
        self.seq_len = seq_len
        self._last_state: MemoryState = None
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_settings()
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = DictSequenceRolloutBuffer if is_dict else SequenceRolloutBuffer
        self.rollout_buffer_kwargs = {**self.rollout_buffer_kwargs, "seq_len": self.seq_len}
        super()._setup_model()

    def _check_settings(self) -> None:
        plan = plan_sequences(self.n_steps, self.n_envs, seq_len=self.seq_len, batch_size=self.batch_size)
        if self.normalize_advantage and plan.per_batch * plan.seq_len == 1:
            raise ValueError("batch_size must be >= 2 to normalise advantages, got 1; or use normalize_advantage=False")
        if not issubclass(self.policy_class, MlpPolicy):
            raise ValueError(
                f"policy must have a memory, got {self.policy_class.__name__}; "
                f"use one of {sorted(self.policy_aliases)} or a subclass of xlstm_rl.MlpPolicy"
            )
        if self.rollout_buffer_class is not None and not issubclass(self.rollout_buffer_class, SequenceRolloutBuffer):
            raise ValueError(
                f"rollout_buffer_class must hold sequences, got {self.rollout_buffer_class.__name__}; "
                "use None or a subclass of SequenceRolloutBuffer"
            )

    def _excluded_save_params(self) -> list[str]:
        # Large and rarely wanted; save(include=["_last_state"]) keeps it, to go on in the middle of an episode
        return [*super()._excluded_save_params(), "_last_state"]

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None or self._last_state is None:
            self._last_state = self.policy.initial_state(self.n_envs)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: SequenceRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill ``rollout_buffer`` with ``n_rollout_steps`` of each environment; the memory goes on where it was.

        The names of the local variables are SB3's: callbacks read them.

        Returns:
            False where the callback ended the training, else True.
        """
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        for n_steps in range(n_rollout_steps):
            self._resample_exploration(n_steps, env.num_envs)
            if n_steps % rollout_buffer.seq_len == 0:
                rollout_buffer.add_state(pack_state(self._last_state))
            with th.inference_mode():
                obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                sampled, values, log_probs, state = self.policy.step(
                    obs_tensor, self._last_state, self._last_episode_starts
                )
            actions = sampled.cpu().numpy()
            clipped_actions = self.policy.to_env_actions(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            if not callback.on_step():
                return False

            self._update_info_buffer(infos, dones)
            self._bootstrap_truncated(rewards, dones, infos, state)
            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                actions,
                rewards,
                self._last_episode_starts,  # type: ignore[arg-type]
                values,
                log_probs,
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts, self._last_state = dones, state

        with th.inference_mode():
            obs_tensor = obs_as_tensor(new_obs, self.device)  # type: ignore[arg-type]
            values = self.policy.predict_values(obs_tensor, self._last_state)
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _resample_exploration(self, n_steps: int, n_envs: int) -> None:
        """gSDE's new noise, at the start of the rollout and then every ``sde_sample_freq`` steps."""
        if self.use_sde and (n_steps == 0 or (self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0)):
            self.policy.reset_noise(n_envs)

    def _bootstrap_truncated(
        self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], state: MemoryState
    ) -> None:
        """Add the discounted value after the last observation to the ``rewards`` of episodes that ran out of time.

        That value is the one of the memory after the last step, which has not been reset.
        """
        rows = [row for row in np.flatnonzero(dones).tolist() if infos[row].get("TimeLimit.truncated", False)]
        if not rows:
            return
        observations = [infos[row]["terminal_observation"] for row in rows]
        with th.inference_mode():
            obs_tensor, _ = self.policy.obs_to_tensor(_stack(observations))
            values = self.policy.predict_values(obs_tensor, select_state(state, rows))
        rewards[rows] += self.gamma * values.flatten().cpu().numpy()

    def train(self) -> None:
        """Update the policy: SB3's own epochs, over minibatches of sequences.

        Logs ``train/replay_gap`` beside SB3's figures: how far the ratio of new and old policy is from one before the
        first update. More than 1e-5 means that training does not see what the rollout saw.
        """
        self.logger.record("train/replay_gap", self._replay_gap())
        buffer, vf_coef = self.rollout_buffer, self.vf_coef
        self.policy.observe_returns(th.as_tensor(buffer.returns, device=self.device))
        # SB3's value loss is in units of the rewards; the actor, which shares the memory, must not drown in it.
        self.vf_coef = vf_coef / self.policy.return_scale.deviation.item() ** 2
        try:
            super().train()
        finally:
            self.vf_coef = vf_coef
        # Only now: the rollout's log-probabilities belong to the scales it was collected with.
        self.policy.observe_features(buffer.all_observations())

    def _replay_gap(self) -> float:
        self.policy.set_training_mode(True)
        plan = self.rollout_buffer.plan(self.batch_size)
        samples = self.rollout_buffer.sequences(np.arange(plan.per_batch))
        is_discrete = isinstance(self.action_space, spaces.Discrete)
        actions = samples.actions.long().flatten() if is_discrete else samples.actions
        with th.no_grad():
            _, log_prob, _ = self.policy.evaluate_actions(samples.observations, actions)  # type: ignore[arg-type]
        return (log_prob - samples.old_log_prob).expm1().abs().max().item()


def _stack(observations: list[Any]) -> Any:
    """One batch (B, ...) from B observations, each an array or a dictionary of arrays."""
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
