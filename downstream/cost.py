"""What fine-tuning, the linear probe and nearest neighbours compute for one image.

The layer of a probe and the comparison of neighbours are left out: they are small beside the encoder.
"""

from lutbench.models.encoders import feature_width
from lutbench.plan.compute import STEP, Cost, transformer
from lutbench.recipes.downstream import FinetuneRecipe, ImageTaskRecipe
from lutbench.recipes.probes import LinearRecipe
from lutbench.run import Run


def finetuning(run: Run[FinetuneRecipe], classes: int) -> Cost:
    """Return what it takes to train and evaluate the encoder with a layer of ``classes`` outputs."""
    model = transformer(run.recipe.encoder.architecture, run.recipe.side, classes)
    return Cost(STEP * model.flop, model.flop, 3 * model.values, model.values)


def linear_probe(run: Run[LinearRecipe], classes: int) -> Cost:
    """Return what it takes to encode an image; the layer is kept, and LARS's one moment of it in checkpoints."""
    layer = (feature_width(run.recipe.encoder.architecture, run.recipe.side, run.recipe.pool) + 1) * classes
    return encoding(run, classes)._replace(checkpoint=2 * layer, exported=layer)


def encoding(run: Run[ImageTaskRecipe], classes: int) -> Cost:
    """Return what it takes to encode an image, whatever the number of ``classes``; nothing is kept."""
    flop = transformer(run.recipe.encoder.architecture, run.recipe.side).flop
    return Cost(flop, flop)
