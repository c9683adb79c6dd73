"""Stage 2: what an encoder is worth on a labelled image set. Fine-tuning, linear probe, k-nearest neighbours."""

from lutbench.recipes import FinetuneRecipe, LinearRecipe
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
    else:
        from downstream.knn import knn

        knn(run)
