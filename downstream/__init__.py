"""Stage 2: what an encoder is worth on a labelled set. Fine-tuning, linear probe,
k-nearest neighbours; semantic segmentation on images with masks."""

from lutbench.recipes import FinetuneRecipe, LinearRecipe, SegmentationRecipe
from lutbench.run import Run


def perform(run: Run) -> None:
    """Perform a planned run of this stage, whichever its task is."""
    recipe = run.planned.recipe
    if isinstance(recipe, FinetuneRecipe):
        from downstream.finetune import finetune

        finetune(run)
    elif isinstance(recipe, LinearRecipe):
        from downstream.linear import linear_probe

        linear_probe(run)
    elif isinstance(recipe, SegmentationRecipe):
        from downstream.segmentation.train import segment

        segment(run)
    else:
        from downstream.knn import knn

        knn(run)
