"""Robustness datasets of the photographs of :mod:`lutbench.data.toy.photographs`, made by the ideas of ImageNet-A, -R and -O.

- ``photographs-a``: held-out crops that a raw-pixel nearest-neighbour classifier gets wrong, as ImageNet-A is what a
  ResNet-50 got wrong (Hendrycks et al. 2021).
- ``photographs-r``: renditions of held-out crops: edges, embossed, halftone, poster, sketch.
- ``photographs-o``: crops of pictures that are of no class.

They say that the stage works, and nothing about a method: a filter of pixels is no ResNet-50, and a filtered photograph no
work of art. On disk they are laid out as the published sets are, ``SET/CLASS/NAME.png``, with a ``manifest.json``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from lutbench.arrays import read_array
from lutbench.data.folder import FolderImages, open_folder
from lutbench.data.toy.build import ToyDataset, pixel_digest
from lutbench.data.toy.photographs import (
    BUILT,
    LEFT_OUT,
    SIDE,
    UNCOMPRESSED,
    Box,
    load_photograph,
    photograph_path,
    square,
)
from lutbench.progress import tracked
from lutbench.train.randomness import RngStream, generator

Drawn = Iterator[tuple[str, Image.Image]]
"""Names below the set's folder, and what is in the files."""

NEIGHBOUR_SIDE = 16
"""Side, in pixels, at which crops are compared."""

MOST_WRONG = 25
"""Crops of each class in photographs-a."""

RENDERED = 5
"""Crops of each class in every rendition."""

OUTSIDE = 30
"""Crops of each picture in photographs-o."""

SIDES = BUILT["photographs"].sides

LEAST_DEVIATION = 5
"""Of a crop's grey levels in photographs-o: less is a plain background, and another is drawn."""


def wrong_for_pixels(root: Path) -> Drawn:
    """Yield held-out crops whose nearest training crop, by squared distance of 16 x 16 pixels, is of another class.

    Distances are whole numbers, so the same on every machine; of equal ones the first crop counts.
    """
    train, val = (BUILT["photographs"].open(split, root) for split in ("train", "val"))
    assert train.labels is not None
    assert val.labels is not None
    known, asked = _small(train), _small(val)
    lengths = (known**2).sum(1)
    nearest = np.concatenate(
        [(lengths - 2 * part @ known.T).argmin(1) for part in np.array_split(asked, 8)]  # a few MB at a time
    )
    wrong = train.labels[nearest] != val.labels
    for label in range(len(val.classes)):
        own = np.flatnonzero(wrong & (val.labels == label))
        some = own if len(own) <= MOST_WRONG else own[np.linspace(0, len(own) - 1, MOST_WRONG).round().astype(np.int64)]
        for index in some.tolist():
            yield val.image_name(index), val.image(index)


def renditions(root: Path) -> Drawn:
    """Yield held-out crops of every class, evenly spaced, in every rendition, each crop in one."""
    val = BUILT["photographs"].open("val", root)
    assert val.labels is not None
    for label, cls in enumerate(val.classes):
        own = np.flatnonzero(val.labels == label)
        spaced = own[np.linspace(0, len(own) - 1, RENDERED * len(RENDITIONS)).round().astype(np.int64)]
        for number, index in enumerate(spaced.tolist()):
            name = sorted(RENDITIONS)[number % len(RENDITIONS)]
            yield f"{cls}/{name}_{number // len(RENDITIONS)}.png", RENDITIONS[name](val.image(index))


def of_no_class(root: Path) -> Drawn:
    """Yield crops of the pictures that were left out of the classes; none that is nearly plain."""
    for which, (name, file) in enumerate(sorted(LEFT_OUT.items())):
        picture = _faces(file) if file.endswith(".npy") else load_photograph(file)
        draw = generator(RngStream.BUILD, SETS["photographs-o"].key, SETS["photographs-o"].revision, which)
        whole: Box = (0, 0, *picture.size)
        drawn = (picture.crop(square(draw, whole, SIDES)) for _ in range(10 * OUTSIDE))
        for number, crop in enumerate(islice(filter(_deviates, drawn), OUTSIDE)):
            yield f"{name}/{number:04d}.png", crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _edges(image: Image.Image) -> Image.Image:
    found = ImageOps.grayscale(image).filter(ImageFilter.SMOOTH).filter(ImageFilter.FIND_EDGES)
    return ImageOps.invert(ImageOps.autocontrast(ImageOps.expand(ImageOps.crop(found, 1), 1)))


def _embossed(image: Image.Image) -> Image.Image:
    return ImageOps.grayscale(image).filter(ImageFilter.EMBOSS)


def _halftone(image: Image.Image) -> Image.Image:
    """Return the crop in black and white, by Bayer's matrix of 4 x 4."""
    bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.int64) * 16 + 8
    grey = np.asarray(ImageOps.autocontrast(ImageOps.grayscale(image)), np.int64)
    return Image.fromarray(np.where(grey > np.tile(bayer, (SIDE // 4, SIDE // 4)), 255, 0).astype(np.uint8))


def _poster(image: Image.Image) -> Image.Image:
    return ImageOps.posterize(ImageOps.autocontrast(image.filter(ImageFilter.ModeFilter(5))), 2)


def _sketch(image: Image.Image) -> Image.Image:
    """Divide grey levels by those of their surroundings, which leaves lines on white."""
    grey = ImageOps.grayscale(image)
    around = np.asarray(grey.filter(ImageFilter.BoxBlur(3)), np.int64)
    return Image.fromarray(np.minimum(255, 255 * np.asarray(grey, np.int64) // np.maximum(around, 1)).astype(np.uint8))


RENDITIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "edges": _edges,
    "embossed": _embossed,
    "halftone": _halftone,
    "poster": _poster,
    "sketch": _sketch,
}
"""From a crop to another picture of the same thing, in whole numbers, so the same on every machine."""


@dataclass(frozen=True)
class RobustnessToyDataset(ToyDataset[FolderImages]):
    """A robustness dataset made of the crops of ``photographs``; its one split is ``test``."""

    made: Callable[[Path], Drawn]
    """Yields its pictures, given the data root, which has ``photographs``."""
    images: int
    """Their number."""

    def recipe(self) -> dict[str, Any]:
        """Return what decides the pixels, as the manifest has it."""
        return {"revision": self.revision, "photographs": BUILT["photographs"].recipe()}

    def list_files(self, folder: Path, split: str, skip_undecodable: bool = False) -> FolderImages:
        """List the dataset that lies in ``folder``."""
        return open_folder(folder, self.name, split, skip_undecodable=skip_undecodable)

    def write(self, folder: Path, root: Path) -> dict[str, dict[str, Any]]:
        """Fill ``folder`` with what is made of ``photographs``, which are built first if they are absent."""
        BUILT["photographs"].build(root)
        written = []
        for name, picture in tracked(self.made(root), self.images, f"building {self.name}"):
            image = picture.convert("RGB")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / name, compress_level=UNCOMPRESSED)
            written.append((name, image))
        images = self.list_files(folder, "test")
        metadata = {
            "images": len(images),
            "classes": len(images.classes),
            "pixels": pixel_digest(sorted(written, key=itemgetter(0))),
            "files": images.fingerprint,
            "names": [name for name, _ in written],
        }
        return {"test": metadata}


SETS = {
    name: RobustnessToyDataset(name, 1, key, {"test": pixels}, made, images)
    for name, key, made, images, pixels in (
        ("photographs-a", 4, wrong_for_pixels, 350, "0cad77ca62dd7aec96d1df72d4c6eeb790174fe174f152d1c18a29249e06b55a"),
        ("photographs-r", 5, renditions, 475, "d9477e26f022ba59da650e31c9082c23014c089007b2693ec4d17a467a19b0b1"),
        ("photographs-o", 6, of_no_class, 240, "41175ada42c8623956a782104e28f78468348572f58298aac200a106923c007a"),
    )
}
"""The datasets by name, all of revision 1."""


def _small(images: FolderImages) -> NDArray[np.float64]:
    """Return crops averaged to 16 x 16 pixels (n, 768): whole numbers, whose products double precision holds exactly."""
    size = (NEIGHBOUR_SIDE, NEIGHBOUR_SIDE)
    crops = (images.image(index).resize(size, Image.Resampling.BOX) for index in range(len(images)))
    return np.stack([np.asarray(crop, np.float64).ravel() for crop in crops])


def _deviates(crop: Image.Image) -> bool:
    grey = np.asarray(ImageOps.grayscale(crop), np.int64).ravel()
    variance = grey.size * int((grey**2).sum()) - int(grey.sum()) ** 2  # times the squared number of pixels
    return variance >= (LEAST_DEVIATION * grey.size) ** 2


def _faces(file: str) -> Image.Image:
    """Return the hundred faces of scikit-image's subset of LFW, ten by ten."""
    faces = read_array(photograph_path(file).read_bytes())[:100]
    side = faces.shape[1]
    sheet = faces.reshape(10, 10, side, side).swapaxes(1, 2).reshape(10 * side, 10 * side)
    return Image.fromarray((sheet * 255).round().astype(np.uint8)).convert("RGB")
