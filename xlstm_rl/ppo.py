"""PPO for policies with memory: Stable-Baselines3's algorithm on sequences that carry the memory's state."""

import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from xlstm_rl import settings
from xlstm_rl.actor import Actor, make_actor
from xlstm_rl.bootstrap import bootstrap_truncated
from xlstm_rl.buffers import SequenceRolloutBuffer
from xlstm_rl.export import export_numpy, export_onnx
from xlstm_rl.inputs import Observation
from xlstm_rl.masks import masks_of
from xlstm_rl.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from xlstm_rl.training import train_epochs

# CartPole without velocities at 100,000 steps, five seeds: 500 each; with a constant 3e-4 one of four fell back to 339.
LEARNING_RATE = LinearSchedule(7e-4, 7e-5, 1.0)
# A rollout of one environment and 128 steps is too little to learn from: 146 where 1,024 steps reach 500.
STEPS, ENVIRONMENTS = 128, 8


class xLSTMPPO(PPO):
    """PPO whose policy remembers: a memory carries its state along each environment's steps.

    Training reads whole rows of the rollout (``n_steps`` of one environment), or chunks of ``seq_len`` steps, through
    the memory in one call, with the memory reset inside at episode starts. The state before the first step of each
    chunk is the one the rollout had there, detached: back-propagation through time ends at the chunk.

    The arguments are those of ``stable_baselines3.PPO``, and these.

    Args:
        policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` (or their names in sb3-contrib, with ``Lstm``),
            or a subclass of ``xlstm_rl.MlpPolicy``.
        learning_rate: a value or a schedule; falls from 7e-4 to a tenth of it over the training unless given.
        n_steps: steps of each environment in a rollout; None for 128, or as many times 128 as it takes fewer than 8
            environments to bring 1,024 together.
        batch_size: steps of a minibatch; None for four minibatches an epoch, fewer where the sequences do not divide
            by four. With ``seq_len`` given it must hold whole sequences and divide the rollout.
        seq_len: steps through which gradients flow back, a divisor of ``n_steps``; None for the longest that fit:
            whole rows, unless ``batch_size`` is smaller or they are too few for two minibatches.
        burn_in: steps, at most ``seq_len``, that a chunk reads before it begins, without gradients and from the state
            stored there, so that updates since the rollout reach its memory.
        state_refresh: before each epoch but the first, read the rollout again and store the memory of the present
            weights where sequences begin; costs one pass forward an epoch.
        recompute_log_prob: take the old log-probabilities from training's own first pass instead of the rollout's, for
            extractors that differ between the two modes (batch norm): then the first ratio is one for them too.
        use_masking: whether actions are masked by the environments' ``action_masks()``, as in sb3-contrib; None for
            where the environments have it.
        policy_kwargs: SB3's, and ``memory``, a dictionary: see ``MlpPolicy``.

    Raises:
        ValueError: sizes that do not divide, a policy without memory, an unknown memory option, masks that the
            environments or the action space do not have.

    >>> env = make_vec_env("CartPoleNoVel-v1", n_envs=8)
    >>> model = xLSTMPPO("MlpPolicy", env, policy_kwargs=dict(memory=dict(embedding_dim=64)))
    >>> model.learn(100_000)
    >>> action, state = model.predict(obs, state, episode_start=start, deterministic=True)
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "MlpLstmPolicy": MlpPolicy,
        "CnnLstmPolicy": CnnPolicy,
        "MultiInputLstmPolicy": MultiInputPolicy,
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
        burn_in: int = 0,
        state_refresh: bool = False,
        recompute_log_prob: bool = False,
        use_masking: bool | None = None,
    ) -> None:
        if n_steps is not None:
            settings.check_sequences(n_steps, seq_len)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps or STEPS,
            # Where it is not given, a size that SB3 has nothing to say about
            batch_size=batch_size or max(n_steps or STEPS, 2),
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
        self._chosen_steps = self.n_steps if n_steps is None else None
        if n_steps is None and seq_len is None:
            seq_len = STEPS
        self.seq_len, self.burn_in, self.state_refresh = seq_len, burn_in, state_refresh
        self.recompute_log_prob, self.use_masking = recompute_log_prob, use_masking
        self._last_state: th.Tensor | None = None
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.n_steps == self._chosen_steps:  # not the user's, nor right for the environments it is loaded for
            self.n_steps = self._chosen_steps = STEPS * -(-ENVIRONMENTS // self.n_envs)
        buffer = settings.buffer_of(self)
        self.rollout_buffer_class, self.rollout_buffer_kwargs = buffer.kind, buffer.options
        super()._setup_model()

    def _maybe_recommend_cpu(self, mlp_class_name: str = "MlpPolicy") -> None:
        # A step of a small memory is shorter than a kernel's launch
        super()._maybe_recommend_cpu(mlp_class_name)

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

        Memory and networks read a snapshot of the weights: what a callback changes counts from the next rollout on.
        The names of the local variables are SB3's: callbacks read them.

        Returns:
            False where the callback ended the training, else True.
        """
        began = time.perf_counter()
        assert self._last_state is not None
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        with self.policy.stepping():
            for n_steps in range(n_rollout_steps):
                self._resample_exploration(n_steps, env.num_envs)
                if rollout_buffer.wants_state():
                    rollout_buffer.add_state(self._last_state)
                action_masks = masks_of(env) if rollout_buffer.mask_size else None
                with th.inference_mode():
                    obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                    sampled, values, log_probs, state = self.policy.step(
                        obs_tensor, self._last_state, self._last_episode_starts, action_masks=action_masks
                    )
                actions = sampled.cpu().numpy()
                clipped_actions = self.policy.to_env_actions(actions)
                new_obs, rewards, dones, infos = env.step(clipped_actions)
                self.num_timesteps += env.num_envs

                callback.update_locals(locals())
                if not callback.on_step():
                    return False

                self._update_info_buffer(infos, dones)
                bootstrap_truncated(self.policy, rewards, dones, infos, state, self.gamma)
                if action_masks is not None:
                    rollout_buffer.add_masks(action_masks)
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
        self._log_speed("rollout", began)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _resample_exploration(self, n_steps: int, n_envs: int) -> None:
        """gSDE's new noise, at the start of the rollout and then every ``sde_sample_freq`` steps."""
        if self.use_sde and (n_steps == 0 or (self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0)):
            self.policy.reset_noise(n_envs)

    def train(self) -> None:
        """Update the policy: SB3's epochs, over minibatches of sequences.

        Logs, beside SB3's figures, ``train/replay_gap``: how far the ratio of new and old policy is from one before
        the first update. More than 1e-5 means that training does not see what the rollout saw.
        """
        began = time.perf_counter()
        train_epochs(self)
        self._log_speed("train", began)

    def _log_speed(self, part: str, began: float) -> None:
        steps = self.n_steps * self.n_envs
        self.logger.record(f"time/fps_{part}", int(steps / max(time.perf_counter() - began, 1e-9)))

    def predict(
        self,
        observation: Observation,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """See ``MlpPolicy.predict``."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def actor(self, n_envs: int = 1) -> Actor:
        """A snapshot of the policy that acts deterministically and fast, for ``n_envs`` observations a call.

        >>> actor, state = model.actor(), None
        >>> action, state = actor(obs, state, episode_start=start)
        """
        return make_actor(self.policy, n_envs)

    def export_numpy(self, path: str | Path) -> None:
        """Write the acting policy for ``NumpyActor``, which needs NumPy alone; see ``export.export_numpy``."""
        export_numpy(self.policy, path)

    def export_onnx(self, path: str | Path) -> None:
        """Write the acting policy as an ONNX graph; see ``export.export_onnx``."""
        export_onnx(self.policy, path)
