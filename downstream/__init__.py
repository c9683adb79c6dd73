"""Stage 2: what an encoder is worth. Fine-tuning, linear probe and k-nearest neighbours on labelled images, semantic
segmentation on images with masks."""

import io
import warnings
from contextlib import redirect_stdout

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch and OpenMMLab's packages about each other
            with redirect_stdout(io.StringIO()):  # they print what optional packages they miss
                from downstream.segmentation.train import segment
            segment(run)
    else:
        from downstream.knn import knn

        knn(run)
