"""The kinds of downstream task that a suite file can name."""

from lutbench.recipes.downstream import DownstreamRecipe, FinetuneRecipe, KnnRecipe, LinearRecipe
from lutbench.recipes.segmentation import SegmentationRecipe

TASKS: dict[str, type[DownstreamRecipe]] = {
    "finetune": FinetuneRecipe,
    "linear": LinearRecipe,
    "knn": KnnRecipe,
    "segmentation": SegmentationRecipe,
}
"""The recipe of every kind."""
