"""A part of the training split that no run trains on, to choose settings by: the split that tables print stays unseen until they are chosen.

Which images are held out depends on the share and on the class alone, so they are the same for every method and every seed, and a
larger share contains a smaller one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lutbench.data.folder import fingerprint_of
from lutbench.data.subsets import SubsetImages
from lutbench.errors import UserError
from lutbench.train.randomness import RngStream, generator

if TYPE_CHECKING:
    from lutbench.data.images import ImageDataset


@dataclass
class HeldOutImages(SubsetImages):
    """The images of ``train`` that are held out, as ``val``; or all others, as ``train``."""

    stands_for: Literal["train", "val"]

    @property
    def split(self) -> str:
        """The name of the split that it stands for."""
        return self.stands_for


def part_of_train(images: "ImageDataset", split: Literal["train", "val"], share: float) -> HeldOutImages:
    """Return the ``share`` of a training split that is held out, as ``val``, or what is left of it, as ``train``.

    Raises:
        UserError: if one of the two would be without images.
    """
    held_out = held_out_images(images, share)
    index = held_out if split == "val" else np.setdiff1d(np.arange(len(images)), held_out)
    if not 0 < len(held_out) < len(images):
        raise UserError(
            f"held_out = {share:g}: of the {len(images):,} training images of {images.name} that leaves {len(images) - len(held_out):,} "
            f"to train on and {len(held_out):,} to choose by. Classes of at least two images are needed, or another share."
        )
    return HeldOutImages(
        whole=images,
        index=index,
        classes=images.classes,
        labels=None if images.labels is None else images.labels[index],
        fingerprint=fingerprint_of([*images.classes, f"held out: {split}"], images.fingerprint.encode(), index),
        skip_undecodable=images.skip_undecodable,
        stands_for=split,
    )


def held_out_images(images: "ImageDataset", share: float) -> NDArray[np.int64]:
    """Return which images (n,), ascending, are held out: of every class its share, at least one, and never the only one.

    Without labels all images are one class.
    """
    labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
    parts = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        many = min(len(of_class) - 1, max(1, int(share * len(of_class) + 0.5)))
        parts.append(of_class[generator(RngStream.CHOICE, int(label)).permutation(len(of_class))[:many]])
    return np.sort(np.concatenate(parts)).astype(np.int64)
