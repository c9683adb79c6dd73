"""Images with masks in ADE20K's layout: ``PATH/images/SPLIT/NAME.jpg`` and ``PATH/annotations/SPLIT/NAME.png``.

MMSegmentation reads the files itself. What is here lists the same files in the same order, says what is wrong with
them before anything is computed, and gives what it takes to describe them to MMSegmentation, to draw them and to tell
two contents apart. Names may hold folders, ``NAME`` being the path below the split's folder.
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
"""In a mask as training sees it: a pixel that counts neither in training nor in evaluation."""

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
    """What names of images end in; a list where it may be one of several."""
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
    ends: tuple[str, ...] = field(default=(), repr=False)
    """The suffix of each image, where it may be one of several."""

    def __len__(self) -> int:
        return len(self.stems)

    def image_path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.images / self._file(index)

    def mask_path(self, index: int) -> Path:
        """Return the file of an image's mask."""
        return self.masks / (self.stems[index] + self.mask_suffix)

    def image_name(self, index: int) -> str:
        """Return the image's file name below its folder, with forward slashes, as :func:`printable` has it."""
        return printable(self._file(index))

    def content(self, index: int) -> bytes:
        """Return the file of an image, as it is. Raises UserError if it cannot be read."""
        with explained():
            return self.image_path(index).read_bytes()

    def image(self, index: int) -> Image.Image:
        """Decode an image, mode RGB, turned as its EXIF tag says: so OpenCV, and through it MMSegmentation, reads it.

        Raises:
            UndecodableImage: naming the file.
        """
        with opened(self.image_path(index)) as file:
            return ImageOps.exif_transpose(to_rgb(file))

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the class of every pixel (H, W) as training sees it: zero reduced, and 255 where a pixel is ignored.

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
        """(256,) The class as which training sees each value of a mask file."""
        classes = np.arange(256, dtype=np.uint8)
        if self.reduce_zero_label:
            classes = np.roll(classes, 1)  # 0 becomes 255, and any other value one less
        classes[self.ignore] = IGNORED
        return classes


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file, whose pixels are decoded when they are asked for.

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
    """Open the file of a mask, as :func:`opened` does. One of 1 bit has the values 0 and 1, as MMSegmentation reads it.

    Raises:
        UndecodableImage: naming the file, if it cannot be read.
        UserError: if it is not one channel of 1 or 8 bits.
    """
    with opened(path) as file:
        if file.mode not in ("L", "P", "1"):
            what = {
                "I": "numbers of 16 or 32 bits: write them as 8 bits, which hold the classes 0 to 255",
                "L": "grey with transparency: write it without, as one channel",
                "F": "floating-point numbers: write them as whole ones of 8 bits",
            }.get(file.mode[0], "colours: write the number of the class in the place of each colour")
            raise UserError(
                f"{path}: expected one channel of 8 bits whose values are classes (Pillow's mode L or P; one bit is read as 0 and 1), found mode "
                f"{file.mode}, which is {what}."
            )
        yield file


@explained()
def list_scenes(recipe: SegmentationDataRecipe, split: Split, root: Path) -> SegmentationDataset:
    """List one split of a dataset whose classes ``recipe`` names.

    The fingerprint is the sha256 over classes, the treatment of zero and of the ignored value, and names and sizes of
    all images and masks; not pixels changed within the same number of bytes.

    Raises:
        UserError: if a folder is missing or empty, images and masks do not pair up, or two images share a name.
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
            found += f" (of images, some in {listed(ends)})" if ends else ""
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
    """Return colours for up to 255 classes, all different and none black: those of PASCAL VOC, by the bits of the number."""
    numbers = np.arange(1, count + 1)
    bits = numbers[:, None, None] >> (np.arange(8)[:, None] * 3 + np.arange(3)) & 1  # (count, bit, channel)
    colours = (bits << np.arange(7, -1, -1)[:, None]).sum(1)
    return tuple((int(r), int(g), int(b)) for r, g, b in colours)


class _Listing(NamedTuple):
    folder: Path
    suffixes: tuple[str, ...]
    sizes: dict[str, int]
    """Bytes of each file that ends in a suffix, by what comes before it."""
    ends: dict[str, str]
    """The suffix of each."""
    others: list[str]
    """Files that are images by their names and end otherwise; or as another one of the same name does."""

    @property
    def suffix(self) -> str:
        """The suffixes, for messages."""
        return " or ".join(map(repr, self.suffixes))


def _list_files(folder: Path, suffixes: tuple[str, ...]) -> _Listing:
    """List the files that MMSegmentation would find, which also looks into hidden folders."""
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
    """Raise UserError if two images have one name in two formats: it is not clear which is meant."""
    # Of a suffix such as "_labels.png" the first part belongs to the name.
    names = {stem + end.rpartition(".")[0] for stem, end in listing.ends.items()}
    twins = [other for other in listing.others if other.rpartition(".")[0] in names]
    if twins:
        raise UserError(
            f"{name}: {len(twins)} images in {listing.folder.absolute()} have the name of another one that ends in "
            f"{listing.suffix}: {listed(sorted(twins))}. It is not clear which is meant: remove one of each."
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
            f"{name}, split {split!r}: every image NAME{images.suffixes[0]} in {images.folder.absolute()} needs a mask "
            f"NAME{masks.suffixes[0]} in {masks.folder.absolute()}, and the other way round. Found {' and '.join(differences)}. "
            f"{_other_suffixes(images, masks)}"
            "Was the set unpacked completely? If only the ends of the names differ, set image_suffix and mask_suffix."
        )


def _other_suffixes(images: _Listing, masks: _Listing) -> str:
    """Return the setting under which images of other suffixes belong to masks that have none; empty if none do."""
    single = masks.sizes.keys() - images.sizes.keys()
    ends = [end for stem, _, end in (other.rpartition(".") for other in images.others) if stem in single]
    if not ends:
        return ""
    suffixes = ", ".join(f'"{suffix}"' for suffix in (*images.suffixes, *sorted({f".{end}" for end in ends})))
    return f"{len(ends):,} of the masks have an image of another ending: set image_suffix = [{suffixes}]. "


def _expected(recipe: SegmentationDataRecipe, name: str, split: str, missing: Path, found: str, hint: str = "") -> str:
    folder = next((above for above in list(missing.parents)[:3] if above.is_dir()), None)  # images, the set's, the root
    beside = hint
    if folder:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry != missing)
        near = hint or nearest(missing.relative_to(folder).parts[0], names)
        beside = f" Folders in {folder.absolute()}: {listed(names)}.{near}" if names else hint
    part = missing.name
    return (
        f"{name}: expected split {split!r} in {missing.absolute()}, but {found}.{beside} The layout is "
        f"images/{part}/NAME{recipe.image_suffixes[0]} with annotations/{part}/NAME{recipe.mask_suffix} below the set's folder. "
        "Point --data-root at the folder that holds your sets; `lutbench data list` shows the known ones and how to get them."
    )
