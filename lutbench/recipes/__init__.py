"""Every setting of the suite, each with its default and where that comes from."""

from lutbench.recipes.base import DataRecipe, EncoderRecipe, Recipe, Runtime, read_recipe
from lutbench.recipes.downstream import (
    TASKS,
    ClassificationRecipe,
    EncoderSource,
    FinetuneRecipe,
    KnnRecipe,
    LinearRecipe,
    TaskRecipe,
)
from lutbench.recipes.pretrain import PretrainRecipe

__all__ = [
    "TASKS",
    "ClassificationRecipe",
    "DataRecipe",
    "EncoderRecipe",
    "EncoderSource",
    "FinetuneRecipe",
    "KnnRecipe",
    "LinearRecipe",
    "PretrainRecipe",
    "Recipe",
    "Runtime",
    "TaskRecipe",
    "read_recipe",
]
