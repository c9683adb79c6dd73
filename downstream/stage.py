"""Checks that all classification tasks share."""

from typing import Any

from PIL import Image
from torch import Tensor

from lutbench.data.images import class_notes
from lutbench.data.preflight import preflight
from lutbench.evaluate.transform import Transform
from lutbench.models.blocks import probe_width
from lutbench.models.encoders import timm_arguments
from lutbench.models.pretrained import check_encoder_weights
from lutbench.recipes.downstream import ClassificationRecipe
from lutbench.run import Run, row_named


def check_classification(run: Run[ClassificationRecipe]) -> None:
    """Find what would stop a classification task before any compute is spent.

    Raises:
        UserError: if its data is absent, has no labels or one class, or val has classes that train has not; if its images cannot
            be decoded or show nothing; or if its encoder cannot be built for the size of its input, has no such features, or has
            no weights that fit.
    """
    check_weights(run)
    train, val = run.dataset("train"), run.dataset("val")
    for note in class_notes(train, val):
        run.workspace.note(note)
    preflight(run, train, val, by_class=True)


def check_weights(run: Run[Any]) -> None:
    """Check that the encoder has the features that the task takes, and its weights, see :func:`check_encoder_weights`."""
    recipe = run.recipe
    timm_arguments(recipe.encoder.architecture, recipe.side)  # what is wrong with it, is so in every row
    with row_named(run):
        probe_width(recipe.encoder.architecture, recipe.side, recipe.pooling, recipe.blocks_taken)
    check_encoder_weights(run, recipe.image_size)


def sample(transform: Transform, image: Image.Image) -> dict[str, Tensor]:
    """Return what the stream takes of an image: ``image`` (3, S, S)."""
    return {"image": transform(image)}
