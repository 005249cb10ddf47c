"""Tuned hyper-parameters for environments that need memory, in RL Zoo's format: read here, or given to RL Zoo."""

from xlstm_rl.zoo.recipes import HYPERPARAMETERS, Recipe, load_recipe, recipe_names
from xlstm_rl.zoo.registration import register

__all__ = ["HYPERPARAMETERS", "Recipe", "load_recipe", "recipe_names", "register"]
