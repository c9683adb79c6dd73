"""Two small datasets, cut from photographs that ship inside scikit-image and scikit-learn; nothing is downloaded.

``photographs``: which of 19 photographs is a crop from?  ``photograph-tiles``: which quarter of which of six?
A photograph (or quarter) is cut into bands, by turns for training and validation, with gaps between them, so that no
pixel is in both splits. Crops are squares of varied side, resized to 64 x 64 (our choice: objects then have no fixed size,
as in real sets; with 300 training crops of each class, a raw 10-epoch ViT gets 91 % of crops right that are all of side 64,
84 % of those of varied side). They say that a pipeline works and hardly anything about a method: train and validation
crops share a photographer, a light and a camera.

On disk they are laid out as ImageNet is, ``SET/{train,val}/CLASS/0000.png``, with a ``manifest.json``.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lutbench.data.decoding import decode
from lutbench.data.folder import FolderImages, open_folder
from lutbench.data.toy.build import ToyDataset, pixel_digest
from lutbench.errors import UserError
from lutbench.progress import tracked
from lutbench.train.randomness import RngStream, generator

SIDE = 64
"""Of every crop, in pixels."""

BANDS = ("train", "val", "train", "val")
"""Equal bands that the longer side of a photograph or quarter is cut into: so most things are seen in both splits."""

UNCOMPRESSED = 0
"""PNG's compress level of the crops: half the time to read of compressed ones, twice their size: 60 MB of photographs."""

PHOTOGRAPHS = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png",
    "cat": "skimage/data/chelsea.png",
    "cell": "skimage/data/cell.png",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "galaxies": "skimage/data/hubble_deep_field.jpg",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "handwriting": "skimage/data/text.png",
    "moon": "skimage/data/moon.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "page": "skimage/data/page.png",
    "pagoda": "sklearn/datasets/images/china.jpg",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
    "tissue": "skimage/data/ihc.png",
}
"""Classes and their files inside the installed packages."""

LEFT_OUT = {
    "chessboard": "skimage/data/chessboard_RGB.png",
    "clock": "skimage/data/clock_motion.png",
    "colours": "skimage/data/color.png",
    "faces": "skimage/data/lfw_subset.npy",
    "horse": "skimage/data/horse.png",
    "logo": "skimage/data/logo.png",
    "phantom": "skimage/data/phantom.png",
    "vessels": "skimage/data/microaneurysms.png",
}
"""Pictures of the same packages that are in no class, kept for a set outside the distribution."""


@dataclass(frozen=True)
class CropDataset(ToyDataset[FolderImages]):
    """A dataset of crops of photographs."""

    photographs: tuple[str, ...]
    """Sorted."""
    quarters: bool
    """Whether every quarter of a photograph is a class of its own."""
    counts: dict[str, int]
    """Crops of each class in train and val."""
    sides: tuple[int, int]
    """Shortest and longest side of a crop, in pixels of the photograph; clipped to the part it is cut from."""
    gap: int
    """Pixels between the parts."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted."""
        return tuple(name for name, _ in self.regions())

    def regions(self) -> list[tuple[str, str]]:
        """Return every class with the photograph it is cut from, sorted."""
        if not self.quarters:
            return [(name, name) for name in self.photographs]
        return [(f"{name}-{quarter}", name) for name in self.photographs for quarter in sorted(QUARTERS)]

    def recipe(self) -> dict[str, Any]:
        """Return what decides the pixels, as the manifest has it."""
        return {
            "revision": self.revision,
            "photographs": {name: PHOTOGRAPHS[name] for name in self.photographs},
            "quarters": self.quarters,
            "counts": self.counts,
            "sides": list(self.sides),
            "size": SIDE,
            "gap": self.gap,
            "bands": list(BANDS),
        }

    def list_files(self, folder: Path, split: str, skip_undecodable: bool = False) -> FolderImages:
        """List one split of the dataset that lies in ``folder``."""
        return open_folder(folder / split, self.name, split, skip_undecodable=skip_undecodable)

    def names(self, split: str) -> Iterator[str]:
        """Yield the names of a split's images."""
        return (f"{cls}/{number:04d}.png" for cls in self.classes for number in range(self.counts[split]))

    def write(self, folder: Path, root: Path) -> dict[str, dict[str, Any]]:
        """Fill ``folder`` with crops."""
        cut: dict[str, list[tuple[str, Image.Image]]] = {"train": [], "val": []}
        by_photograph = [(name, list(same)) for name, same in groupby(self.regions(), key=itemgetter(1))]
        for photograph, regions in tracked(by_photograph, len(by_photograph), f"building {self.name}"):
            image = load_photograph(PHOTOGRAPHS[photograph])
            for cls, _ in regions:
                for split, boxes in parts(self, cls, image.size).items():
                    (folder / split / cls).mkdir(parents=True)
                    for number, box in enumerate(crops(self, cls, split, boxes)):
                        crop = image.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                        crop.save(folder / split / cls / f"{number:04d}.png", compress_level=UNCOMPRESSED)
                        cut[split].append((f"{cls}/{number:04d}.png", crop))
        return {
            split: {
                "images": len(images),
                "classes": len(self.classes),
                "pixels": pixel_digest(images),
                "files": self.list_files(folder, split).fingerprint,
            }
            for split, images in cut.items()
        }


QUARTERS = {"nw": (0, 0), "ne": (1, 0), "sw": (0, 1), "se": (1, 1)}
"""Column and row of a photograph's quarters."""

BUILT = {
    built.name: built
    for built in (
        CropDataset(
            name="photographs",
            revision=2,
            key=1,
            photographs=tuple(PHOTOGRAPHS),
            quarters=False,
            counts={"train": 150, "val": 50},
            sides=(48, 112),
            gap=16,
            pixels={
                "train": "39974210c753269b024729cb5f2e8f0983c11fa0b07a66f9ac28c95e106d7d63",
                "val": "9277d24a1ab73f68495cb32362fa9baf72bc0a4374825fde0ddec9e0d1490b8e",
            },
        ),
        CropDataset(
            name="photograph-tiles",
            revision=1,
            key=2,
            photographs=("astronaut", "camera", "coffee", "motorcycle", "pagoda", "tissue"),
            quarters=True,
            counts={"train": 100, "val": 50},
            sides=(40, 64),
            gap=8,
            pixels={
                "train": "2bd65ec625032cd6dfb5b7e00662d9d20502ea84c3b7d7248118c9a0df933d53",
                "val": "ad1af20e71565a30483c299af5ea13e4a01697be403695d882179beab2172768",
            },
        ),
    )
}
"""The datasets by name."""

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels of the photograph."""


def load_photograph(file: str) -> Image.Image:
    """Load a photograph by its path inside the installed packages, RGB.

    Raises:
        UserError: if it is not installed; it is never downloaded.
    """
    path = photograph_path(file)
    return decode(path.read_bytes(), str(path))


def photograph_path(file: str) -> Path:
    """Return the path of a file inside the installed packages.

    Raises:
        UserError: if it is not installed.
    """
    package, _, inside = file.partition("/")
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / inside if found and found.origin else None
    if path is None or not path.is_file():
        project = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise UserError(
            f"The photograph {file} is not installed{f' ({path} is missing)' if path else ''}. It ships inside the wheel of "
            f"{project} on PyPI; some distributions leave it out. Install it with: pip install --force-reinstall {project}"
        )
    return path


def parts(built: CropDataset, cls: str, size: tuple[int, int]) -> dict[str, list[Box]]:
    """Return the bands of a class's photograph of ``size`` (width, height) that are for training and for validation."""
    left, upper, right, lower = 0, 0, *size
    if built.quarters:
        column, row = QUARTERS[cls.rpartition("-")[2]]
        left, right = ((0, size[0] // 2), (size[0] // 2, size[0]))[column]
        upper, lower = ((0, size[1] // 2), (size[1] // 2, size[1]))[row]
    return bands((left, upper, right, lower), built.gap)


def bands(box: Box, gap: int) -> dict[str, list[Box]]:
    """Return the bands of ``box``, across its longer side and ``gap`` pixels apart, for training and for validation."""
    left, upper, right, lower = box
    upright = right - left >= lower - upper
    first, last = (left, right) if upright else (upper, lower)
    width = (last - first - (len(BANDS) - 1) * gap) // len(BANDS)
    found: dict[str, list[Box]] = {split: [] for split in BANDS}
    for number, split in enumerate(BANDS):
        begin = first + number * (width + gap)
        end = begin + width
        found[split].append((begin, upper, end, lower) if upright else (left, begin, right, end))
    return found


def crops(built: CropDataset, cls: str, split: str, boxes: list[Box]) -> list[Box]:
    """Return the crops of a class: squares of varied side, in each of ``boxes`` by turns, from a key of their own."""
    label = built.classes.index(cls)
    draw = generator(RngStream.BUILD, built.key, built.revision, label, ("train", "val").index(split))
    return [square(draw, boxes[number % len(boxes)], built.sides) for number in range(built.counts[split])]


def square(draw: np.random.Generator, box: Box, sides: tuple[int, int]) -> Box:
    """Draw a random square in ``box``, its side from the first to the second of ``sides``, or less if it would not fit."""
    left, upper, right, lower = box
    side = min(int(draw.integers(sides[0], sides[1], endpoint=True)), right - left, lower - upper)
    x = int(draw.integers(left, right - side, endpoint=True))
    y = int(draw.integers(upper, lower - side, endpoint=True))
    return x, y, x + side, y + side
