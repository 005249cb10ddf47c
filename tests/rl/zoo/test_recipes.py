"""The tuned hyper-parameters."""

import sys

import pytest
import yaml

from xlstm_rl import xLSTMPPO
from xlstm_rl.envs import EpisodeClock
from xlstm_rl.sequences import plan_sequences
from xlstm_rl.zoo import HYPERPARAMETERS, load_recipe, recipe_names

OURS = ["CartPoleNoVel-v1", "PendulumNoVel-v1", "MountainCarContinuousNoVel-v0", "TMaze50-v0", "TMaze200-v0"]


@pytest.mark.parametrize("env_id", recipe_names())
def test_every_recipe_divides_into_minibatches(env_id):
    entry = yaml.safe_load(HYPERPARAMETERS.read_text())[env_id]
    plan_sequences(entry["n_steps"], entry["n_envs"], seq_len=entry.get("seq_len"), batch_size=entry["batch_size"])


@pytest.mark.parametrize("env_id", OURS)
def test_recipes_are_arguments_of_the_algorithm(env_id):
    recipe = load_recipe(env_id)
    model = xLSTMPPO(env=recipe.make_env(seed=0), **recipe.model, seed=0, device="cpu")
    assert model.n_envs == recipe.n_envs
    assert recipe.n_timesteps >= 100_000


def test_the_same_recipe_and_seed_train_the_same_policy():
    def rewards() -> list[float]:
        recipe = load_recipe("TMaze50-v0")
        model = xLSTMPPO(env=recipe.make_env(seed=3), **{**recipe.model, "n_epochs": 1}, seed=3, device="cpu")
        return [episode["r"] for episode in model.learn(2048).ep_info_buffer]

    assert rewards() == rewards()


def test_schedules_in_zoos_words_fall_to_nothing():
    schedule = load_recipe("CartPoleNoVel-v1").model["learning_rate"]
    assert schedule(1.0) == pytest.approx(7e-4)
    assert schedule(0.0) == 0


def test_wrappers_are_found_by_their_path_and_take_options(monkeypatch, tmp_path):
    entry = {
        "n_timesteps": 10,
        "n_envs": 2,
        "env_wrapper": [{"xlstm_rl.envs.EpisodeClock": {"periods": [4, 9]}}, "gymnasium.wrappers.FlattenObservation"],
    }
    file = tmp_path / "recipes.yml"
    file.write_text(yaml.safe_dump({"TMaze50-v0": entry}))
    monkeypatch.setattr("xlstm_rl.zoo.recipes.HYPERPARAMETERS", file)
    env = load_recipe("TMaze50-v0").make_env()
    assert env.observation_space.shape == (4 + 2 * 2,)
    assert env.env_is_wrapped(EpisodeClock) == [True, True]


def test_an_environment_without_recipe_is_refused():
    with pytest.raises(ValueError, match=r"no recipe for 'Ant-v5'; use one of \['CartPoleNoVel-v1'"):
        load_recipe("Ant-v5")


@pytest.mark.parametrize(
    ("env_id", "package"), [("popgym-AutoencodeEasy-v0", "popgym"), ("MiniGrid-MemoryS9-v0", "minigrid")]
)
def test_environments_of_a_package_that_is_missing_are_told_with_it(env_id, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{env_id} is an environment of {package}: pip install {package}"):
        load_recipe(env_id)
