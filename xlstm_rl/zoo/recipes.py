"""Recipes: the entries of ``xlstm_ppo.yml``, RL Zoo's format, as arguments for ``xLSTMPPO`` and its environments."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

HYPERPARAMETERS = Path(__file__).with_name("xlstm_ppo.yml")

_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
_PACKAGES = {"popgym": "popgym", "MiniGrid": "minigrid"}  # by the first word of an environment's name


class Recipe(NamedTuple):
    """How to train on one environment.

    >>> recipe = load_recipe("TMaze50-v0")
    >>> model = xLSTMPPO(env=recipe.make_env(seed=0), **recipe.model).learn(recipe.n_timesteps)
    """

    env_id: str
    n_timesteps: int
    n_envs: int
    wrappers: tuple[Callable[[gym.Env], gym.Env], ...]
    model: dict[str, Any]
    """Keyword arguments of ``xLSTMPPO``."""

    def make_env(self, *, seed: int | None = None) -> VecEnv:
        """The environments, wrapped and monitored."""
        # A function, not the name: by name SB3 asks for pictures, and environments without them warn.
        return make_vec_env(lambda: gym.make(self.env_id), self.n_envs, seed=seed, wrapper_class=self._wrap)

    def _wrap(self, env: gym.Env) -> gym.Env:
        for wrapper in self.wrappers:
            env = wrapper(env)
        return env


def recipe_names() -> list[str]:
    """The environments that there is a recipe for."""
    return sorted(_read())


def load_recipe(env_id: str) -> Recipe:
    """The recipe for ``env_id``.

    Raises:
        ValueError: there is none.
        ImportError: the environment or one of its wrappers belongs to a package that is not installed.
    """
    entries = _read()
    if env_id not in entries:
        raise ValueError(f"no recipe for {env_id!r}; use one of {sorted(entries)}")
    _register(env_id)
    options = dict(entries[env_id])
    n_timesteps, n_envs = int(options.pop("n_timesteps")), options.pop("n_envs")
    wrappers = tuple(_wrapper(entry) for entry in options.pop("env_wrapper", []))
    for name in _SCHEDULES:
        if isinstance(options.get(name), str):
            options[name] = _linear(options[name])
    return Recipe(env_id, n_timesteps, n_envs, wrappers, options)


def _register(env_id: str) -> None:
    """Import the package that an environment is of, which tells Gymnasium its environments."""
    package = _PACKAGES.get(env_id.partition("-")[0])
    if package is None:
        return
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{env_id} is an environment of {package}: pip install {package}") from error


def _read() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(HYPERPARAMETERS.read_text())


def _wrapper(entry: str | dict[str, dict[str, Any]]) -> Callable[[gym.Env], gym.Env]:
    """RL Zoo's two forms: ``module.Class``, or ``{module.Class: {option: value}}``."""
    path, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
    module, _, name = path.rpartition(".")
    wrapper = getattr(importlib.import_module(module), name)
    return lambda env: wrapper(env, **options)


def _linear(text: str) -> LinearSchedule:
    """RL Zoo's ``lin_0.001``: from there to nothing over the training."""
    return LinearSchedule(float(text.removeprefix("lin_")), 0.0, 1.0)
