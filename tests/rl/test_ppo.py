"""The algorithm: rollouts that carry the memory, the replay, truncation, SB3's helpers."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from xlstm_rl import xLSTMPPO
from xlstm_rl.sequences import Sequences


class ReplayGaps(BaseCallback):
    """Keeps what each update logged."""

    def __init__(self):
        super().__init__()
        self.gaps = []

    def _on_rollout_start(self):
        if (gap := self.model.logger.name_to_value.get("train/replay_gap")) is not None:
            self.gaps.append(gap)

    def _on_step(self):
        return True


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


def collect(model):
    """One rollout without an update."""
    _, callback = model._setup_learn(10**6)
    callback.on_training_start({}, {})
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer


def after(model, row):
    """The memory after one environment's row, which no episode's end interrupts."""
    return model.policy.read(row.observations.observations, row.observations.states, row.observations.episode_starts)


def whole_row(model, env_index):
    buffer = model.rollout_buffer
    row = buffer.sequences(np.array([env_index]))
    with torch.no_grad():
        values, log_prob, _ = model.policy.evaluate_actions(row.observations, row.actions.long().flatten())
    return row, values.flatten(), log_prob


@pytest.mark.parametrize(("seq_len", "batch_size"), [(None, 32), (None, 16), (4, 8), (1, 32)])
def test_the_first_ratio_of_every_update_is_one(tiny_model, seq_len, batch_size):
    callback = ReplayGaps()
    tiny_model(seq_len=seq_len, batch_size=batch_size, learning_rate=0.01).learn(32 * 5, callback=callback)
    assert len(callback.gaps) == 4
    assert max(callback.gaps) < 1e-5


def test_the_replay_gap_shows_a_memory_that_differs_from_the_rollouts(tiny_model):
    model = tiny_model(seq_len=4, batch_size=32)
    buffer = collect(model)
    buffer.states = {
        step: states[::-1].copy() for step, states in buffer.states.items()
    }  # each environment gets the other's memory
    model.train()
    assert model.logger.name_to_value["train/replay_gap"] > 1e-4


def test_the_rollout_remembers_within_an_episode_and_forgets_between(tiny_model, drift_env):
    model = tiny_model(drift_env(length=5))
    buffer = collect(model)
    values = torch.from_numpy(buffer.values[:, 0])
    with torch.no_grad():
        for start in (0, 5, 10):
            observations = torch.from_numpy(buffer.observations[start : start + 5, 0])
            fresh = model.policy.initial_state(1)
            episode = Sequences(observations, torch.zeros(1, 5, dtype=torch.bool), fresh)
            alone = model.policy.evaluate_actions(episode, torch.zeros(5))[0].flatten()
            torch.testing.assert_close(values[start : start + 5], alone, rtol=1e-5, atol=1e-6)


def test_the_memory_is_carried_from_one_rollout_to_the_next(tiny_model, drift_env):
    model = tiny_model(drift_env(length=10**6), learning_rate=0.0, policy_kwargs={"normalize": False}).learn(32)
    first = model.rollout_buffer.sequences(np.array([0]))
    state = after(model, first)
    model.learn(32, reset_num_timesteps=False)
    carried = model.rollout_buffer.sequences(np.array([0])).observations.states
    torch.testing.assert_close(carried, state, rtol=1e-4, atol=1e-5)


def test_learning_anew_starts_with_a_fresh_memory(tiny_model):
    model = tiny_model().learn(32)
    collect(model)
    fresh = model.policy.initial_state(model.n_envs).numpy()
    np.testing.assert_array_equal(model.rollout_buffer.states[0], fresh)


def test_chunks_give_the_log_probabilities_of_whole_rows(tiny_model):
    model = tiny_model(seq_len=4)
    buffer = collect(model)
    chunks = buffer.sequences(np.arange(4))
    with torch.no_grad():
        _, log_prob, _ = model.policy.evaluate_actions(chunks.observations, chunks.actions.long().flatten())
    buffer.seq_len = buffer.buffer_size
    torch.testing.assert_close(log_prob, whole_row(model, 0)[2], rtol=1e-5, atol=1e-6)


def test_gradients_end_where_a_chunk_begins(tiny_model):
    model = tiny_model(seq_len=4)
    samples = collect(model).sequences(np.arange(4))
    observations = samples.observations.observations.requires_grad_()
    values, _, _ = model.policy.evaluate_actions(samples.observations, samples.actions.long().flatten())
    (gradient,) = torch.autograd.grad(values.view(4, 4)[2, -1], observations)
    reached = gradient.view(4, 4, -1).abs().sum(dim=(1, 2)) > 0
    assert reached.tolist() == [False, False, True, False]


def test_a_truncated_episode_is_bootstrapped_with_the_value_after_its_last_observation(tiny_model, drift_env):
    """The whole episode, its terminal observation included, read at once by a fresh memory."""
    terminal = {}

    class Terminals(BaseCallback):
        def _on_step(self):
            for row, info in enumerate(self.locals["infos"]):
                if "terminal_observation" in info:
                    terminal[self.n_calls - 1, row] = info["terminal_observation"]
            return True

    model = tiny_model(drift_env(n_envs=3, length=5), gamma=0.9)
    model._setup_learn(10**6)
    callback = Terminals()
    callback.init_callback(model)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    buffer = model.rollout_buffer
    assert sorted(terminal) == [(step, row) for step in (4, 9, 14) for row in range(3)]
    for (step, row), last in terminal.items():
        observations = np.concatenate([buffer.observations[step - 4 : step + 1, row], last[None]])
        packed = model.policy.initial_state(1)
        episode = Sequences(torch.from_numpy(observations), torch.zeros(1, 6, dtype=torch.bool), packed)
        with torch.no_grad():
            value = model.policy.evaluate_actions(episode, torch.zeros(6))[0][-1].item()
        assert buffer.rewards[step, row] == pytest.approx(1 + 0.9 * value, abs=1e-6)


def test_a_terminated_episode_is_not_bootstrapped(tiny_model, drift_env):
    buffer = collect(tiny_model(drift_env(length=10**6, hazard=0.3)))
    assert buffer.episode_starts[1:].any()
    np.testing.assert_array_equal(buffer.rewards, 1)


def test_bootstrapping_leaves_the_carried_memory_alone(tiny_model, drift_env):
    model = tiny_model(drift_env(length=16))
    collect(model)
    row, values, _ = whole_row(model, 0)
    torch.testing.assert_close(values, row.old_values, rtol=1e-5, atol=1e-6)
    state = after(model, row)
    torch.testing.assert_close(model._last_state[:1], state, rtol=1e-4, atol=1e-5)


def test_two_seeded_runs_agree_bit_for_bit(tiny_model, drift_env):
    first, second = (tiny_model(drift_env(hazard=0.1, seed=5), seed=5).learn(96) for _ in range(2))
    assert torch.equal(parameters(first), parameters(second))


def test_another_seed_gives_another_run(tiny_model, drift_env):
    first, second = (tiny_model(drift_env(hazard=0.1, seed=s), seed=s).learn(96) for s in (5, 6))
    assert not torch.equal(parameters(first), parameters(second))


@pytest.mark.parametrize("n_envs", [1, 2, 5])
def test_evaluate_policy_runs_on_any_number_of_environments(tiny_model, drift_env, n_envs):
    reward, deviation = evaluate_policy(tiny_model(), drift_env(n_envs=n_envs, length=4), n_eval_episodes=6)
    assert (reward, deviation) == (4.0, 0.0)


def test_eval_callback_evaluates_and_saves_the_best(tiny_model, drift_env, tmp_path):
    callback = EvalCallback(
        drift_env(n_envs=1, length=4), eval_freq=16, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0
    )
    model = tiny_model().learn(64, callback=callback)
    assert callback.best_mean_reward == 4
    assert xLSTMPPO.load(tmp_path / "best_model.zip", device="cpu").n_steps == model.n_steps


def test_a_callback_can_end_the_training(tiny_model, drift_env):
    model = tiny_model(drift_env(length=4)).learn(1000, callback=StopTrainingOnMaxEpisodes(3))
    assert model.num_timesteps < 1000


def test_callbacks_find_sb3s_names_in_the_rollout(tiny_model):
    seen = set()

    class Names(BaseCallback):
        def _on_step(self):
            seen.update(self.locals)
            return True

    tiny_model().learn(32, callback=Names())
    names = {"actions", "clipped_actions", "values", "log_probs", "new_obs", "obs_tensor", "rewards", "dones", "infos"}
    assert names | {"env", "n_steps", "n_rollout_steps", "rollout_buffer", "callback"} <= seen


@pytest.mark.parametrize(("frequency", "draws"), [(-1, 1), (8, 2), (5, 4)])
def test_exploration_is_drawn_anew_for_each_rollout_and_as_often_as_asked(
    tiny_model, drift_env, monkeypatch, frequency, draws
):
    env = drift_env(action_space=spaces.Box(-2, 2, (1,), np.float32))
    model = tiny_model(env, use_sde=True, sde_sample_freq=frequency)
    drawn = []
    monkeypatch.setattr(model.policy, "reset_noise", drawn.append)
    collect(model)
    assert drawn == [env.num_envs] * draws


def test_normalised_environments_train(tiny_model, drift_env):
    env = VecNormalize(drift_env(hazard=0.1))
    model = tiny_model(env).learn(64)
    assert model.get_vec_normalize_env() is env
    assert model.logger.name_to_value["train/replay_gap"] < 1e-5


def test_it_is_a_ppo(tiny_model):
    assert isinstance(tiny_model(), PPO)


@pytest.mark.parametrize(("n_envs", "n_steps"), [(1, 1024), (3, 384), (8, 128), (20, 128)])
def test_a_rollout_holds_a_thousand_steps_unless_told_otherwise(drift_env, n_envs, n_steps):
    model = xLSTMPPO("MlpPolicy", drift_env(n_envs), device="cpu")
    assert (model.n_steps, model.rollout_buffer.seq_len) == (n_steps, 128)


def test_sb3s_truncated_minibatch_trains(tiny_model, drift_env):
    with pytest.warns(UserWarning, match="there will be a truncated mini-batch of size 1"):
        model = tiny_model(drift_env(n_envs=1), n_steps=64, batch_size=63).learn(64)
    assert np.isfinite(model.logger.name_to_value["train/loss"])
    assert [len(batch.actions) for batch in model.rollout_buffer.get(63)] == [63, 1]


@pytest.mark.parametrize("name", ["MlpLstmPolicy", "MlpPolicy"])
def test_sb3_contribs_names_of_policies_are_understood(tiny_model, name):
    assert type(tiny_model(policy=name).policy) is xLSTMPPO.policy_aliases["MlpPolicy"]


def test_training_stops_where_the_policy_has_moved_too_far(tiny_model):
    model = tiny_model(target_kl=1e-9, learning_rate=0.05, n_epochs=5).learn(32)
    assert model._n_updates < 5


def test_what_is_not_finite_is_named_before_it_is_learnt(tiny_model):
    env = make_vec_env("CartPole-v1", 2, wrapper_class=lambda env: gym.wrappers.TransformReward(env, lambda _: np.nan))
    model = tiny_model(env)
    with pytest.raises(
        ValueError, match=r"the return of environment \d at step 15 of the rollout is nan: .*VecCheckNan"
    ):
        model.learn(32)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
