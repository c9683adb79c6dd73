"""Images with masks in ADE20K's layout: ``PATH/images/SPLIT/NAME.jpg`` and ``PATH/annotations/SPLIT/NAME.png``.

MMSegmentation reads the files itself. What is here lists the same files in the same order, says what is wrong with
them before anything is computed, and gives what it takes to describe them to MMSegmentation, to draw them and to tell
two contents apart. Names may hold folders, ``NAME`` being the path below the split's folder.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lutbench.data.decoding import BROKEN, UndecodableImage, to_rgb
from lutbench.data.folder import fingerprint_of
from lutbench.data.images import Split
from lutbench.data.walking import IMAGES, explained, printable, walk
from lutbench.errors import UserError, listed, nearest
from lutbench.files import read_json
from lutbench.recipes import SegmentationDataRecipe

if TYPE_CHECKING:
    from lutbench.data.integrity import Scan
    from lutbench.data.manifest import IntegrityReport
    from lutbench.data.survey import Survey
    from lutbench.recipes.base import DatasetRecipe
    from lutbench.workspace import Workspace

IGNORED = 255
"""In a mask as training sees it: a pixel that counts neither in training nor in evaluation."""

ADE20K_IMAGES: dict[Split, int] = {"train": 20_210, "val": 2_000}
"""Images of each split of ADE20K's scene-parsing benchmark."""

Colour = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""


@dataclass(frozen=True)
class SegmentationDataset:
    """One split of a set of images with masks."""

    name: str
    split: str
    images: Path
    masks: Path
    """Folders of the split's images and masks."""
    image_suffix: str
    mask_suffix: str
    classes: tuple[str, ...]
    """In the order of the values that training sees."""
    palette: tuple[Colour, ...]
    """A colour for every class."""
    reduce_zero_label: bool
    """Whether a 0 in a mask file means no class and 1 the first one, or 0 the first one."""
    ignore: int
    """The value in a mask file that counts neither in training nor in evaluation, besides a reduced zero."""
    fingerprint: str
    """Hex digest that tells two contents apart; the same for the same data on every machine."""
    stems: tuple[str, ...] = field(repr=False)
    """File names without suffix, in MMSegmentation's order."""
    sizes: NDArray[np.int64] = field(repr=False, compare=False)
    """(n,) Bytes of each image's file."""

    def __len__(self) -> int:
        return len(self.stems)

    def image_path(self, index: int) -> Path:
        """The file of an image."""
        return self.images / (self.stems[index] + self.image_suffix)

    def mask_path(self, index: int) -> Path:
        """The file of an image's mask."""
        return self.masks / (self.stems[index] + self.mask_suffix)

    def image_name(self, index: int) -> str:
        """The image's file name below its folder, with forward slashes, as :func:`printable` has it."""
        return printable(self.stems[index] + self.image_suffix)

    def content(self, index: int) -> bytes:
        """The file of an image, as it is. Raises UserError if it cannot be read."""
        with explained():
            return self.image_path(index).read_bytes()

    def image(self, index: int) -> Image.Image:
        """An image, mode RGB, turned as its EXIF tag says: so OpenCV, and through it MMSegmentation, reads it.

        Raises:
            UndecodableImage: naming the file.
        """
        with opened(self.image_path(index)) as file:
            return ImageOps.exif_transpose(to_rgb(file))

    def mask(self, index: int) -> NDArray[np.uint8]:
        """(H, W) the class of every pixel as training sees it: zero reduced, and 255 where a pixel is ignored.

        Raises:
            UndecodableImage: naming the file.
            UserError: if it is not one channel of 8 bits.
        """
        with opened_mask(self.mask_path(index)) as file:
            mask: NDArray[np.uint8] = self._seen[np.asarray(file)]
            return mask

    @cached_property
    def _seen(self) -> NDArray[np.uint8]:
        """(256,) what training sees of every value in a mask file."""
        seen = np.arange(256, dtype=np.uint8)
        if self.reduce_zero_label:
            seen = np.roll(seen, 1)  # 0 becomes 255, and any other value one less
        seen[self.ignore] = IGNORED
        return seen


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file, whose pixels are decoded when they are asked for.

    Raises:
        UndecodableImage: naming the file, if it cannot be read, also where its pixels are decoded inside the block.
    """
    try:
        with Image.open(path) as file:
            yield file
    except BROKEN as error:
        found = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UndecodableImage(
            f"{path} cannot be decoded: {found}. Replace the file, or remove it with its mask or image."
        ) from error


@contextmanager
def opened_mask(path: Path) -> Iterator[Image.Image]:
    """As :func:`opened`, for a mask.

    Raises:
        UserError: also if it is not one channel of 8 bits.
    """
    with opened(path) as file:
        if file.mode not in ("L", "P"):
            raise UserError(
                f"{path}: expected one channel of 8 bits whose values are classes (Pillow's mode L or P), found mode "
                f"{file.mode}. Masks that hold colours must be rewritten with the classes' numbers."
            )
        yield file


@explained()
def list_scenes(recipe: SegmentationDataRecipe, split: Split, root: Path) -> SegmentationDataset:
    """List one split of a set whose classes ``recipe`` names.

    The fingerprint is the sha256 over classes, the treatment of zero and of the ignored value, and names and sizes of
    all images and masks; not pixels changed within the same number of bytes.

    Raises:
        UserError: if a folder is missing or empty, images and masks do not pair up, or two images share a name.
    """
    name = recipe.label or recipe.path
    folder, part = root / recipe.path, recipe.train if split == "train" else recipe.val
    folders = folder / "images" / part, folder / "annotations" / part
    suffixes = recipe.image_suffix, recipe.mask_suffix
    for place in folders:
        if not place.is_dir():
            raise UserError(_expected(recipe, name, split, place, "there is no such folder"))
    with ThreadPoolExecutor(2) as threads:  # hides some of the latency of a network file system
        images, masks = threads.map(_list_files, folders, suffixes)
    for place, listing, suffix in zip(folders, (images, masks), suffixes, strict=True):
        if not listing.sizes:
            ends = sorted({"." + other.rpartition(".")[2] for other in listing.others})
            found = f"no file there ends in {suffix!r}" + (f" (of images, some in {listed(ends)})" if ends else "")
            raise UserError(_expected(recipe, name, split, place, found))
        _refuse_twins(name, place, listing, suffix)
    _refuse_singles(recipe, name, split, folders, images, masks)

    stems = tuple(sorted(images.sizes, key=lambda stem: stem + recipe.image_suffix))
    return SegmentationDataset(
        name=name,
        split=split,
        images=folders[0],
        masks=folders[1],
        image_suffix=recipe.image_suffix,
        mask_suffix=recipe.mask_suffix,
        classes=tuple(recipe.classes),
        palette=tuple((r, g, b) for r, g, b in recipe.palette) or choose_palette(len(recipe.classes)),
        reduce_zero_label=recipe.reduce_zero_label,
        ignore=recipe.ignore,
        fingerprint=fingerprint_of(
            recipe.classes,
            np.array([recipe.reduce_zero_label, recipe.ignore], np.int64),
            b"\0".join(os.fsencode(stem + suffix) for suffix in suffixes for stem in stems),
            np.array([listing.sizes[stem] for listing in (images, masks) for stem in stems], np.int64),
        ),
        stems=stems,
        sizes=np.array([images.sizes[stem] for stem in stems], np.int64),
    )


def open_dataset(recipe: SegmentationDataRecipe, split: Split, root: Path) -> SegmentationDataset:
    """List one split of a dataset below the data root; build mosaics if they are absent.

    Nothing is decoded: that is for :func:`lutbench.data.masks.check_masks`.

    Raises:
        UserError: if a folder is missing or empty, images and masks do not pair up, two images share a name, or ADE20K
            is not complete; says what was looked for where.
    """
    if recipe.source == "mosaics":
        from lutbench.data.toy.mosaics import open_mosaics

        return open_mosaics(split, root)
    if recipe.source == "scenes":
        return list_scenes(recipe, split, root)
    colours = ade20k_colours()
    known = {
        "path": recipe.folder,
        "classes": list(colours),
        "palette": [list(colour) for colour in colours.values()],
        "reduce_zero_label": True,
    }
    dataset = list_scenes(recipe.model_copy(update=known), split, root)
    if len(dataset) != ADE20K_IMAGES[split]:
        other: Split = "val" if split == "train" else "train"
        swapped = f" So many has {other}: are the folders swapped?" if len(dataset) == ADE20K_IMAGES[other] else ""
        raise UserError(
            f"{dataset.name}: expected the {ADE20K_IMAGES[split]:,} images of ADE20K's {split} split in "
            f"{dataset.images.absolute()}, found {len(dataset):,}.{swapped} Was it unpacked completely? "
            'A part of it is another set: give it source = "scenes", with classes and reduce_zero_label = true.'
        )
    return dataset


def survey(recipe: "DatasetRecipe", workspace: "Workspace") -> "Survey":
    """Survey a dataset for a plan, see :func:`lutbench.data.survey.survey`."""
    from lutbench.data.survey import survey

    return survey(recipe, workspace)


def needs(recipe: SegmentationDataRecipe, root: Path) -> dict[str, Path]:
    """Return the folders without which a dataset is not whole, by the names that messages give them."""
    parts = [f"{kind}/{split}" for split in (recipe.train, recipe.val) for kind in ("images", "annotations")]
    return {part: root / recipe.folder / part for part in parts}


def make(recipe: SegmentationDataRecipe, root: Path) -> bool:
    """Build mosaics if they are absent; return whether they were built now."""
    if recipe.source != "mosaics":
        return False
    from lutbench.data.toy.mosaics import MOSAICS

    return MOSAICS.build(root)


def pinned_pixels(recipe: SegmentationDataRecipe) -> dict[str, str]:
    """Return the expected fingerprints of the mosaics, which the suite builds; nothing of others."""
    if recipe.source != "mosaics":
        return {}
    from lutbench.data.toy.mosaics import MOSAICS

    return MOSAICS.pixels


def inspect(dataset: SegmentationDataset, scan: "Scan", full: bool, report: "IntegrityReport") -> None:
    """Check the masks of the images that were scanned, and the pixels of mosaics if ``full``."""
    from lutbench.data.masks import inspect_masks
    from lutbench.data.toy.mosaics import MOSAICS, mosaic_pixels

    masks = inspect_masks(dataset, scan.indices.tolist())
    if masks.faults:
        report.problems.append(masks.problem)
        return
    report.lines.append(f"{dataset.split}: {len(scan.indices):,} masks looked at fit their images and the classes")
    if full and masks.absent:
        report.notes.append(f"{dataset.split}: no mask has a pixel of {listed(masks.absent)}.")
    if full and not scan.undecodable and dataset.name == MOSAICS.name:
        report.expect_pixels(dataset, mosaic_pixels(dataset))


def ade20k_colours() -> dict[str, Colour]:
    """Return ADE20K's 150 classes in the order of the masks' values, with the colours that its pictures have.

    The same as MMSegmentation's ADE20KDataset has, which is not always installed and takes seconds to import.
    """
    colours = read_json(Path(__file__).with_name("ade20k.json"))
    return {name: (int(c[1:3], 16), int(c[3:5], 16), int(c[5:], 16)) for name, c in colours.items()}


def check_pair(train: SegmentationDataset, val: SegmentationDataset) -> None:
    """Whether what is trained on ``train`` can be measured on ``val``.

    Raises:
        UserError: if their classes or the meaning of their masks' values differ, or they are the same images.
    """
    for what in ("classes", "reduce_zero_label", "ignore"):
        found = [getattr(scenes, what) for scenes in (train, val)]
        if found[0] != found[1]:
            raise UserError(
                f"{train.name}: train and val must agree in {what}, but train has {found[0]} and val {found[1]}."
            )
    if train.fingerprint == val.fingerprint:
        raise UserError(
            f"{train.name}: train ({train.images.absolute()}) and val ({val.images.absolute()}) are the same images. "
            "Name two folders with train and val."
        )


def choose_palette(count: int) -> tuple[Colour, ...]:
    """Colours for up to 255 classes, all different and none black: those of PASCAL VOC, by the bits of the number."""
    numbers = np.arange(1, count + 1)
    bits = numbers[:, None, None] >> (np.arange(8)[:, None] * 3 + np.arange(3)) & 1  # (count, bit, channel)
    colours = (bits << np.arange(7, -1, -1)[:, None]).sum(1)
    return tuple((int(r), int(g), int(b)) for r, g, b in colours)


class _Listing(NamedTuple):
    sizes: dict[str, int]
    """Of every file that ends in the suffix, by what comes before it."""
    others: list[str]
    """Files that are images by their names and end otherwise."""


def _list_files(folder: Path, suffix: str) -> _Listing:
    """The files that MMSegmentation would find, which also looks into hidden folders."""
    listing = _Listing({}, [])
    for encoded, size in walk(os.fsencode(folder), (*IMAGES, os.fsencode(suffix.lower())), hidden=True):
        name = os.fsdecode(encoded)
        if name.endswith(suffix):
            listing.sizes[name.removesuffix(suffix)] = size
        else:
            listing.others.append(name)
    return listing


def _refuse_twins(name: str, place: Path, listing: _Listing, suffix: str) -> None:
    """Of two images of one name in two formats it is not clear which is meant."""
    end = suffix.rpartition(".")[0]  # of a suffix such as "_labels.png" the part that belongs to the name
    names = {stem + end for stem in listing.sizes}
    twins = [other for other in listing.others if other.rpartition(".")[0] in names]
    if twins:
        raise UserError(
            f"{name}: {len(twins)} images in {place.absolute()} have the name of another one that ends in {suffix!r}: "
            f"{listed(sorted(twins))}. It is not clear which is meant: remove one of each."
        )


def _refuse_singles(
    recipe: SegmentationDataRecipe, name: str, split: str, folders: tuple[Path, Path], images: _Listing, masks: _Listing
) -> None:
    """Every image has a mask, and every mask an image."""
    kinds = ("images without a mask", "masks without an image")
    singles = sorted(images.sizes.keys() - masks.sizes.keys()), sorted(masks.sizes.keys() - images.sizes.keys())
    if any(singles):
        told = [
            f"{len(stems):,} {kind} ({listed(stem + suffix for stem in stems)})"
            for kind, stems, suffix in zip(kinds, singles, (recipe.image_suffix, recipe.mask_suffix), strict=True)
            if stems
        ]
        raise UserError(
            f"{name}, split {split!r}: every image NAME{recipe.image_suffix} in {folders[0].absolute()} needs a mask "
            f"NAME{recipe.mask_suffix} in {folders[1].absolute()}, and the other way round. Found {' and '.join(told)}. "
            "Was the set unpacked completely? If only the ends of the names differ, set image_suffix and mask_suffix."
        )


def _expected(recipe: SegmentationDataRecipe, name: str, split: str, place: Path, found: str) -> str:
    folder = next((above for above in list(place.parents)[:3] if above.is_dir()), None)  # images, the set's, the root
    here = ""
    if folder:
        beside = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry != place)
        hint = nearest(place.relative_to(folder).parts[0], beside)
        here = f" Folders in {folder.absolute()}: {listed(beside)}.{hint}" if beside else ""
    part = place.name
    return (
        f"{name}: expected split {split!r} in {place.absolute()}, but {found}.{here} The layout is "
        f"images/{part}/NAME{recipe.image_suffix} with annotations/{part}/NAME{recipe.mask_suffix} below the set's folder. "
        "Point --data-root at the folder that holds your sets; `lutbench data list` shows the known ones and how to get them."
    )
