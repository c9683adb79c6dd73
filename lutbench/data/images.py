"""Open any image dataset; whatever its source, the result is an :class:`ImageDataset`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.classes import check_pair as check_pair
from lutbench.data.classes import class_notes as class_notes
from lutbench.data.classes import composed
from lutbench.data.decoding import Pixels
from lutbench.data.decoding import UndecodableImage as UndecodableImage  # which belongs to the protocol
from lutbench.data.few import few_of
from lutbench.data.folder import fingerprint_of, open_folder
from lutbench.data.held_out import part_of_train
from lutbench.data.layout import likely_setting
from lutbench.data.survey import Survey, survey_splits
from lutbench.data.toy.photographs import BUILT, CropDataset
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe, Form

if TYPE_CHECKING:
    from lutbench.data.folder import FolderImages
    from lutbench.data.huggingface import HuggingFaceImages
    from lutbench.data.streaming import StreamedImages
    from lutbench.workspace import Workspace

Split = Literal["train", "val"]

IMAGENET_CLASSES = 1000


class Files(Protocol):
    """The encoded images of one split, with or without labels or masks."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n,) Bytes of every encoded image; less than 1 if there is none."""
        ...

    def __len__(self) -> int: ...

    def content(self, index: int) -> bytes:
        """Return the encoded image. Raises UserError if it cannot be read."""
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
    """Hex digest of the content; the same for the same data on every machine."""
    skip_undecodable: bool
    """Whether :func:`load_or_next` skips images that cannot be decoded."""

    def image(self, index: int) -> Image.Image:
        """Decode an image, mode RGB. Raises :class:`UndecodableImage`."""
        ...

    def pixels(self, index: int) -> Pixels:
        """Return the same pixels as :meth:`image`, as an array (H, W, 3), possibly read-only; faster if Pillow is not needed."""
        ...


def open_dataset(recipe: DataRecipe, split: Split, root: Path) -> ImageDataset:
    """Open one split of a dataset below the data root.

    No image is decoded. A dataset that the suite builds is built if it does not exist. ``bits``, if given, is part of the
    fingerprint, as it changes pixels. With ``held_out`` both splits are parts of ``train``.

    Raises:
        UserError: if the dataset is missing, empty, incomplete or has another layout; the message says what was expected where.
    """
    if recipe.held_out:
        whole = open_dataset(recipe.model_copy(update={"held_out": None, "few": None}), "train", root)
        part = part_of_train(whole, split, recipe.held_out)
        return part if recipe.few is None else part.at(few_of(part, recipe.few))
    opened = _open(recipe, split, root)
    if recipe.few is not None and not recipe.streaming:
        listed: Any = opened
        opened = listed.at(few_of(listed, recipe.few))
    if recipe.bits is None:
        return opened
    settings: Any = {"bits": recipe.bits, "fingerprint": fingerprint_of([opened.fingerprint, f"{recipe.bits} bits"])}
    return replace(opened, **settings)


def _open(recipe: DataRecipe, split: Split, root: Path) -> "FolderImages | HuggingFaceImages | StreamedImages":
    name = recipe.label or recipe.path or recipe.source
    skip = recipe.undecodable == "skip"
    folder = recipe.train if split == "train" else recipe.val
    if split == "val" and not folder:
        raise UserError(f"{name}: this run needs a validation split, but val is empty. Set val to its folder or split.")
    if recipe.source == "huggingface" and not recipe.path:
        raise UserError(
            "path is empty: expected the name of a Hugging Face dataset on the Hub, or its folder below the data root."
        )
    if recipe.streaming:
        from lutbench.data.streaming import open_streamed

        return open_streamed(recipe, folder, root)
    if recipe.source == "huggingface":
        from lutbench.data.huggingface import open_huggingface  # slow to import, and most runs do without

        return open_huggingface(recipe, split, root)
    if recipe.source == "folder":
        hint = likely_setting(root, recipe.path, folder, split)
        return open_folder(root / recipe.path / folder, name, split, skip_undecodable=skip, hint=hint)
    if toy := built_by(recipe):
        return toy.open(split, root, skip_undecodable=skip)
    from lutbench.data.official import open_official

    return open_official(recipe, split, root)


def survey(recipe: DataRecipe, workspace: "Workspace") -> Survey:
    """Return what is known about a dataset before a run; a streamed one needs no disk space."""
    found = survey_splits(recipe, workspace, lambda images: int(images.sizes.clip(0).sum()))
    return replace(found, disk=()) if recipe.streaming else found


def needs(recipe: DataRecipe, root: Path) -> dict[str, Path]:
    """Return the files and folders that the dataset needs, by their names in messages."""
    splits = [recipe.train, *([recipe.val] if recipe.val and not recipe.held_out else [])]
    names = splits
    if recipe.source != "folder":
        from lutbench.data.official import FORMATS

        parts = (part.strip() for split in splits for part in split.split("+"))
        names = [name for part in parts for name in FORMATS[recipe.source].needs(part)]
    return {name: root / recipe.folder / name for name in names}


def built_by(recipe: DataRecipe) -> CropDataset | None:
    """Return the builder of a dataset made from photographs; None for other datasets."""
    return BUILT.get(recipe.source)


def is_streamed(images: ImageDataset) -> "TypeGuard[StreamedImages]":
    """Return whether the dataset is a stream, which is fast only in its own order."""
    return hasattr(images, "contents")


@overload
def load_or_next(
    images: ImageDataset, index: int, content: bytes | None = None, form: Literal["Pillow"] = "Pillow"
) -> tuple[Image.Image, int, int]: ...
@overload
def load_or_next(
    images: ImageDataset, index: int, content: bytes | None = None, form: Form = "Pillow"
) -> tuple[Any, int, int]: ...
def load_or_next(
    images: ImageDataset, index: int, content: bytes | None = None, form: Form = "Pillow"
) -> tuple[Any, int, int]:
    """Return an image, its index, and how many undecodable images were skipped before it.

    ``content`` is the content of image ``index`` if it was read already (streamed datasets). If the dataset skips undecodable
    images, the next decodable one replaces them.

    Raises:
        UndecodableImage: if the image cannot be decoded and the dataset does not skip.
        UserError: if none of the dataset's images can be decoded.
    """
    for skipped in range(len(images)):
        used = (index + skipped) % len(images)
        try:
            if content is not None and not skipped and is_streamed(images):
                return (images.decoded if form == "Pillow" else images.decoded_pixels)(used, content), used, 0
            return (images.image if form == "Pillow" else images.pixels)(used), used, skipped
        except UndecodableImage:
            if not images.skip_undecodable:
                raise
    raise UserError(
        f"{images.name}: none of the {len(images)} images of split {images.split!r} can be decoded, "
        f"starting with {images.image_name(index)}. Check that the dataset is unpacked and in a format that Pillow reads."
    )


def aligned(train: ImageDataset, val: ImageDataset) -> ImageDataset:
    """Return ``val`` with the classes of ``train`` and labels in their order. Raises UserError as :func:`check_pair` does."""
    check_pair(train, val)
    if val.classes == train.classes:
        return val
    assert val.labels is not None
    label_of = {composed(name): label for label, name in enumerate(train.classes)}
    labels = np.array([label_of.get(composed(name), -1) for name in val.classes], np.int64)[val.labels]
    changed: Any = replace(val, classes=train.classes, labels=labels)  # type: ignore[type-var]
    return changed  # type: ignore[no-any-return]


def few_files(recipe: DataRecipe, root: Path) -> list[Path]:
    """Return the existing files and folders of a dataset, for smoke runs."""
    parts = needs(recipe, root).values() if recipe.source == "folder" else [root / recipe.folder]
    return [part for part in dict.fromkeys(parts) if part.exists()]


def write_miniature(recipe: DataRecipe, root: Path, side: int, classes: Sequence[str] = ()) -> bool:
    """Write a miniature version of the dataset below ``root``, with images of ``side`` pixels; 1000 ``classes`` mean ImageNet-1k's."""
    from lutbench.data.toy.miniatures import is_miniature, miniature, write_images

    if is_miniature(root / recipe.folder, current=True):
        return False
    with miniature(root / recipe.folder) as home:
        write_images(recipe, home, side, imagenet=len(classes) == IMAGENET_CLASSES)
    return True
