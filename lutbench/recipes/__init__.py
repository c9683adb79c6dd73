"""Every setting of the suite, each with its default and where that comes from."""

from lutbench.recipes.base import DataRecipe, EncoderRecipe, Recipe, Runtime, read_recipe
from lutbench.recipes.downstream import (
    ClassificationRecipe,
    DownstreamRecipe,
    EncoderSource,
    FinetuneRecipe,
    KnnRecipe,
    LinearRecipe,
)
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.segmentation import SegmentationDataRecipe, SegmentationRecipe

__all__ = [
    "ClassificationRecipe",
    "DataRecipe",
    "DownstreamRecipe",
    "EncoderRecipe",
    "EncoderSource",
    "FinetuneRecipe",
    "KnnRecipe",
    "LinearRecipe",
    "PretrainRecipe",
    "Recipe",
    "Runtime",
    "SegmentationDataRecipe",
    "SegmentationRecipe",
    "read_recipe",
]
