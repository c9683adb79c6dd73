"""How a classifier does on every image of a set, and an encoder's features of them."""

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import VisionTransformer
from torch import Tensor, nn

from downstream.augment import eval_transform
from lutbench.data.images import ImageDataset
from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.evaluate.inference import Computed, over_images
from lutbench.evaluate.outcomes import Outcomes
from lutbench.models.encoders import encode
from lutbench.recipes import ClassificationRecipe, KnnRecipe, LinearRecipe
from lutbench.train.processes import accelerator


def evaluate(classifier: nn.Module, images: ImageDataset, recipe: ClassificationRecipe, title: str) -> Outcomes:
    """How ``classifier`` does on the centre crop of every labelled image of a set; on every process.

    Raises:
        UserError: if its outputs are not finite, or an image cannot be decoded and the set does not skip those.
    """
    labels = labels_of(images).to(accelerator().device)
    training = classifier.training
    classifier.eval()
    computed = over_images(
        lambda pixels, index: place_of_label(classifier(normalised(pixels)), labels[index]),
        images,
        eval_transform(recipe),
        recipe,
        title,
    )
    classifier.train(training)
    return outcomes_of(computed.values, images, computed.index)


def encode_images(
    encoder: VisionTransformer, images: ImageDataset, recipe: LinearRecipe | KnnRecipe, title: str
) -> Computed:
    """Features (m, D), float32, of the centre crops of a set; on every process.

    Raises:
        UserError: if an image cannot be decoded and the set does not skip those.
    """
    encoder.eval()
    return over_images(
        lambda pixels, index: encode(encoder, normalised(pixels), recipe.pool),
        images,
        eval_transform(recipe),
        recipe,
        title,
    )


def labels_of(images: ImageDataset) -> Tensor:
    """The labels (n,), int64, of a set that has them."""
    assert images.labels is not None, "check_pair refuses sets without labels"
    return torch.from_numpy(images.labels.astype(np.int64))


def place_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """Prediction and place of the label (B, 2), int64, from ``scores`` (B, C) and ``labels`` (B,).

    The place is 0 where the label has the highest score; of equal scores the lower class comes first. Both are -1
    where a score is not finite.
    """
    order = scores.float().argsort(dim=1, descending=True, stable=True)
    place = (order == labels[:, None]).int().argmax(1)
    result = torch.stack([order[:, 0], place], 1)
    return result.where(scores.isfinite().all(1, keepdim=True), -1)


def outcomes_of(places: Tensor, images: ImageDataset, index: NDArray[np.int64]) -> Outcomes:
    """Outcomes of the images ``index`` (m,) of a labelled set, from what :func:`place_of_label` gave, (m, 2).

    Raises:
        UserError: if a classifier's outputs were not finite.
    """
    assert images.labels is not None
    prediction, rank = places.numpy().T
    wrong = prediction < 0
    if wrong.any():
        first = images.image_name(int(index[wrong][0]))
        raise UserError(
            f"{images.name}: the classifier's outputs are not finite for {wrong.sum()} of {len(wrong)} images, "
            f"first for {first}. Training went wrong, or the encoder's weights are not usable."
        )
    return Outcomes.of(images.labels[index], prediction, rank, (images.image_name(int(i)) for i in index))
