"""Images with masks in ADE20K's layout: ``PATH/images/SPLIT/NAME.jpg`` and ``PATH/annotations/SPLIT/NAME.png``.

MMSegmentation reads the files itself. This module lists the same files in the same order, reports errors before anything is computed, and
provides the information for MMSegmentation's configuration, for figures and for the fingerprint. ``NAME`` is the path below the
split's folder and may contain subfolders.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lutbench.data.decoding import BROKEN, UndecodableImage, to_rgb
from lutbench.data.folder import fingerprint_of
from lutbench.data.images import Split
from lutbench.data.layout import likely_setting
from lutbench.data.walking import IMAGES, explained, in_threads, printable, walk
from lutbench.errors import UserError, listed, nearest
from lutbench.recipes.segmentation import SegmentationDataRecipe

IGNORED = 255
"""Value of ignored pixels in a mask as used in training and evaluation."""

Colour = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""


@dataclass(frozen=True)
class SegmentationDataset:
    """One split of a dataset of images with masks."""

    name: str
    split: str
    images: Path
    masks: Path
    """Folders of the split's images and masks."""
    image_suffix: str | list[str]
    """Suffix of image files; a list if several are possible."""
    mask_suffix: str
    classes: tuple[str, ...]
    """Class names in the order of the mask values used in training."""
    palette: tuple[Colour, ...]
    """One colour per class."""
    reduce_zero_label: bool
    """True: value 0 in a mask file means no class and 1 is the first class. False: 0 is the first class."""
    ignore: int
    """Value in a mask file that is ignored in training and evaluation (besides 0, if ``reduce_zero_label``)."""
    fingerprint: str
    """Hex digest of the content; the same for the same data on every machine."""
    stems: tuple[str, ...] = field(repr=False)
    """File names without suffix, in MMSegmentation's order."""
    sizes: NDArray[np.int64] = field(repr=False, compare=False)
    """(n,) Bytes of each image's file."""
    ends: tuple[str, ...] = field(default=(), repr=False)
    """The suffix of each image, if several are possible."""

    def __len__(self) -> int:
        return len(self.stems)

    def image_path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.images / self._file(index)

    def mask_path(self, index: int) -> Path:
        """Return the file of an image's mask."""
        return self.masks / (self.stems[index] + self.mask_suffix)

    def image_name(self, index: int) -> str:
        """Return the image's path below its folder, with forward slashes, made :func:`printable`."""
        return printable(self._file(index))

    def content(self, index: int) -> bytes:
        """Return the content of an image file. Raises UserError if it cannot be read."""
        with explained():
            return self.image_path(index).read_bytes()

    def image(self, index: int) -> Image.Image:
        """Decode an image, mode RGB, rotated by its EXIF tag, as OpenCV (and so MMSegmentation) does.

        Raises:
            UndecodableImage: naming the file.
        """
        with opened(self.image_path(index)) as file:
            return ImageOps.exif_transpose(to_rgb(file))

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the class of every pixel (H, W) as used in training: after ``reduce_zero_label``, 255 for ignored pixels.

        Raises:
            UndecodableImage: naming the file.
            UserError: if it is not one channel of 8 bits.
        """
        with opened_mask(self.mask_path(index)) as file:
            mask: NDArray[np.uint8] = self._classes_of_values[np.asarray(file, np.uint8)]
            return mask

    def _file(self, index: int) -> str:
        return self.stems[index] + (self.image_suffix if isinstance(self.image_suffix, str) else self.ends[index])

    @cached_property
    def _classes_of_values(self) -> NDArray[np.uint8]:
        """Return the class (256,) of each value in a mask file, as used in training."""
        classes = np.arange(256, dtype=np.uint8)
        if self.reduce_zero_label:
            classes = np.roll(classes, 1)  # 0 becomes 255, and any other value one less
        classes[self.ignore] = IGNORED
        return classes


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; its pixels are decoded when needed.

    Raises:
        UndecodableImage: naming the file, if it cannot be read; also if decoding fails inside the ``with`` block.
    """
    try:
        with Image.open(path) as file:
            yield file
    except BROKEN as error:
        found = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UndecodableImage(
            f"{path} cannot be decoded: {found}. Replace the file, or remove both the image and its mask."
        ) from error


@contextmanager
def opened_mask(path: Path) -> Iterator[Image.Image]:
    """Open a mask file, as :func:`opened` does. A 1-bit mask has the values 0 and 1, as in MMSegmentation.

    Raises:
        UndecodableImage: naming the file, if it cannot be read.
        UserError: if it is not one channel of 1 or 8 bits.
    """
    with opened(path) as file:
        if file.mode not in ("L", "P", "1"):
            what = {
                "I": "16 or 32-bit integers: convert them to 8 bits, enough for classes 0 to 255",
                "L": "grey with transparency: remove the transparency",
                "F": "floating-point numbers: convert them to 8-bit integers",
            }.get(file.mode[0], "colours: replace each colour by the number of its class")
            raise UserError(
                f"{path}: expected a mask with one 8-bit channel of class numbers (Pillow mode L or P; 1 bit is read as 0 and 1), found mode "
                f"{file.mode}, which is {what}."
            )
        yield file


@explained()
def list_scenes(recipe: SegmentationDataRecipe, split: Split, root: Path) -> SegmentationDataset:
    """List one split of a dataset whose classes ``recipe`` names.

    The fingerprint is the sha256 over classes, ``reduce_zero_label``, ``ignore``, and names and sizes of all images and masks. It does
    not change if pixels change within the same number of bytes.

    Raises:
        UserError: if a folder is missing or empty, an image has no mask or a mask no image, or two images have the same name.
    """
    name, part = recipe.label or recipe.path, recipe.train if split == "train" else recipe.val
    folders = [root / recipe.path / kind / part for kind in ("images", "annotations")]
    suffixes = recipe.image_suffixes, (recipe.mask_suffix,)
    for folder in folders:
        if not folder.is_dir():
            hint = likely_setting(root, recipe.path, part, split, folder.parent.name)
            raise UserError(_expected(recipe, name, split, folder, "there is no such folder", hint))
    images, masks = in_threads(  # hides some of the latency of a network file system
        lambda index: _list_files(folders[index], suffixes[index]), range(2), f"listing {name} {split}", threads=2
    )
    for listing in (images, masks):
        if not listing.sizes:
            ends = sorted({"." + other.rpartition(".")[2] for other in listing.others})
            found = f"no file there ends in {listing.suffix}"
            found += f" (there are images with {listed(ends)})" if ends else ""
            raise UserError(_expected(recipe, name, split, listing.folder, found))
        _refuse_twins(name, listing)
    _refuse_singles(name, split, images, masks)

    stems = tuple(sorted(images.sizes, key=lambda stem: stem + images.ends[stem]))
    return SegmentationDataset(
        name=name,
        split=split,
        images=images.folder,
        masks=masks.folder,
        image_suffix=recipe.image_suffix,
        mask_suffix=recipe.mask_suffix,
        classes=tuple(recipe.classes),
        palette=tuple((r, g, b) for r, g, b in recipe.palette) or choose_palette(len(recipe.classes)),
        reduce_zero_label=recipe.reduce_zero_label,
        ignore=recipe.ignore,
        fingerprint=fingerprint_of(
            recipe.classes,
            np.array([recipe.reduce_zero_label, recipe.ignore], np.int64),
            b"\0".join(os.fsencode(stem + listing.ends[stem]) for listing in (images, masks) for stem in stems),
            np.array([listing.sizes[stem] for listing in (images, masks) for stem in stems], np.int64),
        ),
        stems=stems,
        ends=() if isinstance(recipe.image_suffix, str) else tuple(images.ends[stem] for stem in stems),
        sizes=np.array([images.sizes[stem] for stem in stems], np.int64),
    )


def choose_palette(count: int) -> tuple[Colour, ...]:
    """Return different colours, none black, for up to 255 classes: PASCAL VOC's colour map, from the bits of the class number."""
    numbers = np.arange(1, count + 1)
    bits = numbers[:, None, None] >> (np.arange(8)[:, None] * 3 + np.arange(3)) & 1  # (count, bit, channel)
    colours = (bits << np.arange(7, -1, -1)[:, None]).sum(1)
    return tuple((int(r), int(g), int(b)) for r, g, b in colours)


class _Listing(NamedTuple):
    folder: Path
    suffixes: tuple[str, ...]
    sizes: dict[str, int]
    """Size in bytes of each file with one of the suffixes, by its name without suffix."""
    ends: dict[str, str]
    """The suffix of each file."""
    others: list[str]
    """Image files with another suffix, or with the same name as another file and a different suffix."""

    @property
    def suffix(self) -> str:
        """The suffixes, for messages."""
        return " or ".join(map(repr, self.suffixes))


def _list_files(folder: Path, suffixes: tuple[str, ...]) -> _Listing:
    """List the files that MMSegmentation would find; it also searches hidden folders."""
    listing = _Listing(folder, suffixes, {}, {}, [])
    endings = (*IMAGES, *(os.fsencode(suffix.lower()) for suffix in suffixes))
    for encoded, size in walk(os.fsencode(folder), endings, hidden=True):
        name = os.fsdecode(encoded)
        suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
        stem = name.removesuffix(suffix or "")
        if suffix is None or stem in listing.sizes:
            listing.others.append(name)
        else:
            listing.sizes[stem], listing.ends[stem] = size, suffix
    return listing


def _refuse_twins(name: str, listing: _Listing) -> None:
    """Raise UserError if two images have the same name in different formats."""
    # In a suffix such as "_labels.png", the first part belongs to the name.
    names = {stem + end.rpartition(".")[0] for stem, end in listing.ends.items()}
    twins = [other for other in listing.others if other.rpartition(".")[0] in names]
    if twins:
        raise UserError(
            f"{name}: {len(twins)} images in {listing.folder.absolute()} have the same name as another file that ends in "
            f"{listing.suffix}: {listed(sorted(twins))}. Remove one of each."
        )


def _refuse_singles(name: str, split: str, images: _Listing, masks: _Listing) -> None:
    """Raise UserError unless every image has a mask, and every mask an image."""
    differences = [
        f"{len(singles):,} {kind} ({listed(stem + own.ends[stem] for stem in sorted(singles))})"
        for kind, own, other in (("images without a mask", images, masks), ("masks without an image", masks, images))
        if (singles := own.sizes.keys() - other.sizes.keys())
    ]
    if differences:
        raise UserError(
            f"{name}, split {split!r}: expected for every image NAME{images.suffixes[0]} in {images.folder.absolute()} a mask "
            f"NAME{masks.suffixes[0]} in {masks.folder.absolute()}, and vice versa. Found {' and '.join(differences)}. "
            f"{_other_suffixes(images, masks)}"
            "Unpack the dataset completely. If only the suffixes differ, set image_suffix and mask_suffix."
        )


def _other_suffixes(images: _Listing, masks: _Listing) -> str:
    """Return a suggested image_suffix if masks without an image have one with another suffix; else empty."""
    single = masks.sizes.keys() - images.sizes.keys()
    ends = [end for stem, _, end in (other.rpartition(".") for other in images.others) if stem in single]
    if not ends:
        return ""
    suffixes = ", ".join(f'"{suffix}"' for suffix in (*images.suffixes, *sorted({f".{end}" for end in ends})))
    return f"{len(ends):,} of the masks have an image with another suffix: set image_suffix = [{suffixes}]. "


def _expected(recipe: SegmentationDataRecipe, name: str, split: str, missing: Path, found: str, hint: str = "") -> str:
    folder = next(
        (above for above in list(missing.parents)[:3] if above.is_dir()), None
    )  # images, the dataset, the root
    beside = hint
    if folder:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry != missing)
        near = hint or nearest(missing.relative_to(folder).parts[0], names)
        beside = f" Folders in {folder.absolute()}: {listed(names)}.{near}" if names else hint
    part = missing.name
    return (
        f"{name}: expected split {split!r} in {missing.absolute()}, but {found}.{beside} Expected layout: "
        f"images/{part}/NAME{recipe.image_suffixes[0]} and annotations/{part}/NAME{recipe.mask_suffix} below the dataset's folder. "
        "Set --data-root to the folder that holds your datasets; `lutbench data list` shows the known datasets and how to get them."
    )
