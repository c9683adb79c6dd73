"""What every classification task begins with."""

import torch
from PIL import Image
from torch import Tensor

from lutbench.data.images import check_pair
from lutbench.evaluate.transform import Transform
from lutbench.models.encoders import create_encoder
from lutbench.recipes.downstream import ClassificationRecipe
from lutbench.run import Run


def check_classification(run: Run[ClassificationRecipe]) -> None:
    """Find what would stop a classification task before any compute is spent.

    Raises:
        UserError: if its data is absent, has no labels, or train and val have other classes; or if its encoder cannot be
            built for the size of its input.
    """
    with torch.device("meta"):
        create_encoder(run.recipe.encoder.architecture, run.recipe.side)
    check_pair(run.dataset("train"), run.dataset("val"))


def sample(transform: Transform, image: Image.Image) -> dict[str, Tensor]:
    """Return what the stream takes of an image: ``image`` (3, S, S)."""
    return {"image": transform(image)}
