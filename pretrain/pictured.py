"""The few training images for monitoring a student at every checkpoint and for the pictures at the end."""

from torch import Tensor
from torch.utils.data import default_collate

from lutbench.data.images import ImageDataset, load_or_next
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.randomness import RngStream, seeded
from pretrain.views import PretrainTransform

PICTURED = 8
"""Images in the picture grid."""


def pictured(images: ImageDataset, recipe: PretrainRecipe, seed: int, count: int = PICTURED) -> dict[str, Tensor]:
    """Return a batch of ``count`` images, spread over the set, or all of fewer; views and masks of an epoch never trained on."""
    transform, samples = PretrainTransform(recipe), []
    for index in range(0, len(images), max(1, len(images) // count))[:count]:
        with seeded(RngStream.IMAGE, seed, recipe.epochs + 1, index):
            samples.append(transform(load_or_next(images, index, form=recipe.form)[0]))
    return default_collate(samples)  # type: ignore[no-any-return]
