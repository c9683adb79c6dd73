"""A held-out part of the training split, for choosing settings. The split that final tables report is then not used for the choice.

The held-out images depend only on the share and the class: they are the same for every method and seed, and a larger share contains
a smaller one.
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
    """The held-out images of ``train``, as ``val``; or the remaining ones, as ``train``."""

    stands_for: Literal["train", "val"]

    @property
    def split(self) -> str:
        """Name of the split that it is used as."""
        return self.stands_for


def part_of_train(images: "ImageDataset", split: Literal["train", "val"], share: float) -> HeldOutImages:
    """Return the held-out ``share`` of a training split (``val``), or the rest of it (``train``).

    Raises:
        UserError: if one of the two has no images.
    """
    held_out = held_out_images(images, share)
    index = held_out if split == "val" else np.setdiff1d(np.arange(len(images)), held_out)
    if not 0 < len(held_out) < len(images):
        raise UserError(
            f"held_out = {share:g}: {images.name} has {len(images):,} training images, of which this leaves {len(images) - len(held_out):,} "
            f"for training and {len(held_out):,} for evaluation. Change held_out, or use classes with at least two images."
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
    """Return the ascending indices (n,) of the held-out images: the share of every class, at least one, but never the only one.

    Without labels all images count as one class.
    """
    labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
    parts = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        many = min(len(of_class) - 1, max(1, int(share * len(of_class) + 0.5)))
        parts.append(of_class[generator(RngStream.CHOICE, int(label)).permutation(len(of_class))[:many]])
    return np.sort(np.concatenate(parts)).astype(np.int64)
