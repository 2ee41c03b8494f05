"""Training: recipes, and the runs that they describe."""

from .extend import extend
from .reading import dump_recipe, load_recipe, parse_overrides, read_settings
from .recipe import ArithmeticSettings, DataSettings, ModelSettings, Recipe, TrainingSettings
from .train import TrainedModel, load_run, train_model, train_recipe

__all__ = [
    "ArithmeticSettings",
    "DataSettings",
    "ModelSettings",
    "Recipe",
    "TrainedModel",
    "TrainingSettings",
    "dump_recipe",
    "extend",
    "load_recipe",
    "load_run",
    "parse_overrides",
    "read_settings",
    "train_model",
    "train_recipe",
]
