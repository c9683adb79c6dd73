"""The door to every dataset of images: whatever it comes from, behind it is an :class:`ImageDataset`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import UndecodableImage as UndecodableImage  # which belongs to the protocol
from lutbench.data.folder import open_folder
from lutbench.data.survey import Survey, survey_splits
from lutbench.data.toy.photographs import BUILT, CropDataset
from lutbench.errors import UserError, listed
from lutbench.recipes.base import DataRecipe

if TYPE_CHECKING:
    from lutbench.data.streaming import StreamedImages
    from lutbench.workspace import Workspace

Split = Literal["train", "val"]


class Files(Protocol):
    """One split's images as they are stored, with or without labels or masks."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n,) Bytes of every encoded image; less than 1 where there is none."""
        ...

    def __len__(self) -> int: ...

    def content(self, index: int) -> bytes:
        """Return an image as it is stored, encoded. Raises UserError if it cannot be read."""
        ...

    def image_name(self, index: int) -> str:
        """Return a name that is the same on every machine."""
        ...


class ImageDataset(Files, Protocol):
    """One split of a dataset: images by index, with or without labels."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels; empty without labels."""
    labels: NDArray[np.int64] | None
    """(n,) The class of every image, or None."""
    fingerprint: str
    """Hex digest that tells two contents apart; the same for the same data on every machine."""
    skip_undecodable: bool
    """Whether :func:`load_or_next` passes over images that cannot be decoded."""

    def image(self, index: int) -> Image.Image:
        """Decode an image, mode RGB. Raises :class:`UndecodableImage`."""
        ...


def open_dataset(recipe: DataRecipe, split: Split, root: Path) -> ImageDataset:
    """Open one split of a dataset below the data root.

    Nothing is decoded; a dataset that the suite builds itself is built if it is absent.

    Raises:
        UserError: if it is missing, empty, incomplete or not laid out as expected; says what was looked for where.
    """
    name = recipe.label or recipe.path or recipe.source
    skip = recipe.undecodable == "skip"
    folder = recipe.train if split == "train" else recipe.val
    if split == "val" and not folder:
        raise UserError(
            f"{name}: the set has no validation split (val is empty), and this run needs one. Name its folder or split with val."
        )
    if recipe.source == "huggingface" and not recipe.path:
        raise UserError(
            "path is empty: give the name of the Hugging Face set on the Hub, or its folder below the data root."
        )
    if recipe.streaming:
        from lutbench.data.streaming import open_streamed

        return open_streamed(recipe, folder, root)
    if recipe.source == "huggingface":
        from lutbench.data.huggingface import open_huggingface  # slow to import, and most runs do without

        return open_huggingface(recipe, split, root)
    if recipe.source == "folder":
        return open_folder(root / recipe.path / folder, name, split, skip_undecodable=skip)
    if toy := built_by(recipe):
        return toy.open(split, root, skip_undecodable=skip)
    from lutbench.data.official import open_official

    return open_official(recipe, split, root)


def survey(recipe: DataRecipe, workspace: "Workspace") -> Survey:
    """Return what is known of a dataset before anything runs; one that is streamed takes no room."""
    found = survey_splits(recipe, workspace, lambda images: int(images.sizes.clip(0).sum()))
    return replace(found, disk=()) if recipe.streaming else found


def needs(recipe: DataRecipe, root: Path) -> dict[str, Path]:
    """Return the files and folders without which a dataset is not whole, by the names that messages give them."""
    splits = [recipe.train, *([recipe.val] if recipe.val else [])]
    names = splits
    if recipe.source != "folder":
        from lutbench.data.official import FORMATS

        parts = (part.strip() for split in splits for part in split.split("+"))
        names = [name for part in parts for name in FORMATS[recipe.source].needs(part)]
    return {name: root / recipe.folder / name for name in names}


def built_by(recipe: DataRecipe) -> CropDataset | None:
    """Return what builds a dataset from photographs; None if it is not the suite's own."""
    return BUILT.get(recipe.source)


def is_streamed(images: ImageDataset) -> "TypeGuard[StreamedImages]":
    """Return whether images come quickly only in the order of a stream."""
    return hasattr(images, "contents")


def load_or_next(images: ImageDataset, index: int, content: bytes | None = None) -> tuple[Image.Image, int, int]:
    """Return an image, its index, and how many undecodable ones were passed over on the way to it.

    ``content`` is that of a streamed dataset's image ``index``, read already. Where a dataset skips undecodable images, the
    next decodable one takes the place of such an image.

    Raises:
        UndecodableImage: if the image cannot be decoded and the dataset does not skip.
        UserError: if none of the dataset's images can be decoded.
    """
    for skipped in range(len(images)):
        used = (index + skipped) % len(images)
        try:
            if content is not None and not skipped and is_streamed(images):
                return images.decoded(used, content), used, 0
            return images.image(used), used, skipped
        except UndecodableImage:
            if not images.skip_undecodable:
                raise
    raise UserError(
        f"{images.name}: not one of the {len(images)} images of split {images.split!r} can be decoded, "
        f"beginning with {images.image_name(index)}. Is the set unpacked, and in a format that Pillow reads?"
    )


def check_pair(train: ImageDataset, val: ImageDataset) -> None:
    """Check that a classifier trained on ``train`` can be measured on ``val``.

    Raises:
        UserError: if one has no labels, or their classes differ; names the differences.
    """
    for images in (train, val):
        if images.labels is None:
            raise UserError(
                f"{images.name}: split {images.split!r} has no labels, and classification needs them. Sort its images "
                "into class folders, or name the label column of a Hugging Face set with label_column."
            )
    if train.classes == val.classes:
        return
    only = {
        images.split: [name for name in images.classes if name not in set(other.classes)]
        for images, other in ((train, val), (val, train))
    }
    differences = [f"only in {split}: {listed(names)}" for split, names in only.items() if names]
    raise UserError(
        f"{train.name}: train and val must have the same classes, but train has {len(train.classes)} and val "
        f"{len(val.classes)}; {'; '.join(differences) or 'they are in another order'}. "
        "Was one of them unpacked incompletely, or is it another set's?"
    )
