"""A small dataset of images with masks, made of photographs that ship inside scikit-image and scikit-learn.

Which photograph is a pixel from? Every image is a mosaic of two to four Voronoi regions, each filled from a crop of
another photograph. As in ADE20K, 1 is the first class and 0 is what belongs to none: a ninth photograph. Crops for
training and validation come from different bands of the photographs, with gaps between them, so that no pixel is in
both splits. The mosaics say that a pipeline works, and nothing about a method.

On disk they are laid out as ADE20K is, ``mosaics/{images,annotations}/{training,validation}/0000.png``, with a
``manifest.json``. The images are PNG, unlike ADE20K's: a JPEG's pixels depend on who writes and who reads it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lutbench.data.images import Split
from lutbench.data.scene_folder import SegmentationDataset, list_scenes
from lutbench.data.toy.build import ToyDataset, check_pixels
from lutbench.data.toy.photographs import BANDS, PHOTOGRAPHS, UNCOMPRESSED, Box, bands, load_photograph, square
from lutbench.progress import tracked
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.train.randomness import RngStream, generator

PALETTE = [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [0, 114, 178],
    [213, 94, 0],
    [204, 121, 167],
    [150, 150, 150],
]
"""Okabe and Ito's colours, which the colour-blind can tell apart, with grey for black."""

SPLITS: tuple[Split, Split] = ("train", "val")


@dataclass(frozen=True)
class MosaicDataset(ToyDataset[SegmentationDataset]):
    """A dataset of mosaics of crops of photographs."""

    classes: tuple[str, ...]
    """Photographs, in the order of the masks' values from 1."""
    unlabelled: str
    """The photograph that is no class; 0 in the masks."""
    counts: dict[str, int]
    """Images in train and val."""
    size: int
    """Side of an image in pixels."""
    regions: tuple[int, int]
    """Fewest and most regions of an image."""
    apart: int
    """Least distance between the points that the regions lie around, in pixels."""
    sides: tuple[int, int]
    """Shortest and longest side of a crop, in pixels of the photograph; clipped to the band it is cut from."""
    gap: int
    """Pixels between bands."""

    @property
    def photographs(self) -> tuple[str, ...]:
        """The photographs in the order of their values in the masks."""
        return (self.unlabelled, *self.classes)

    def recipe(self) -> dict[str, Any]:
        """Return what decides the pixels, as the manifest has it."""
        return {
            "revision": self.revision,
            "photographs": {name: PHOTOGRAPHS[name] for name in self.photographs},
            "counts": self.counts,
            "size": self.size,
            "regions": list(self.regions),
            "apart": self.apart,
            "sides": list(self.sides),
            "gap": self.gap,
            "bands": list(BANDS),
        }

    def layout(self, folder: Path) -> SegmentationDataRecipe:
        """Return how a suite file would describe the dataset that lies in ``folder``, were it not known."""
        return SegmentationDataRecipe(
            label=self.name,
            source="scenes",
            path=folder.name,
            image_suffix=".png",
            classes=list(self.classes),
            palette=PALETTE[: len(self.classes)],
            reduce_zero_label=True,
        )

    def list_files(self, folder: Path, split: str, skip_undecodable: bool = False) -> SegmentationDataset:
        """List one split of the dataset that lies in ``folder``."""
        return list_scenes(self.layout(folder), "train" if split == "train" else "val", folder.parent)

    def names(self, split: str) -> Iterator[str]:
        """Yield the names of a split's images."""
        return (f"{number:04d}.png" for number in range(self.counts[split]))

    def write(self, folder: Path, root: Path) -> dict[str, dict[str, Any]]:
        """Fill ``folder`` with images and masks."""
        photographs = {value: load_photograph(PHOTOGRAPHS[name]) for value, name in enumerate(self.photographs)}
        whole = {value: bands((0, 0, *image.size), self.gap) for value, image in photographs.items()}
        layout = self.layout(folder)
        metadata: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            part = layout.train if split == "train" else layout.val
            images, masks = folder / "images" / part, folder / "annotations" / part
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            boxes = {value: found[split] for value, found in whole.items()}
            count = self.counts[split]
            for number in tracked(range(count), count, f"building {self.name} {split}"):
                image, mask = mosaic(self, regions(self, split, number, boxes), photographs)
                image.save(images / f"{number:04d}.png", compress_level=UNCOMPRESSED)
                mask.save(masks / f"{number:04d}.png")
            written = self.list_files(folder, split)
            metadata[split] = {"images": count, "pixels": check_pixels(written), "files": written.fingerprint}
        return metadata


MOSAICS = MosaicDataset(
    name="mosaics",
    revision=1,
    key=3,
    classes=("brick", "cat", "coffee", "flower", "galaxies", "grass", "page", "tissue"),
    unlabelled="rocket",
    counts={"train": 600, "val": 150},
    size=96,
    regions=(2, 4),
    apart=24,
    sides=(64, 112),
    gap=16,
    pixels={
        "train": "9ae2af43184028fd2bea3604d379edb9972e651373a1b9d4a81dff57094987de",
        "val": "07340e283a6aacec29e78e61af5932f964e8392ad0cb1d635ef0cdeeedac8f07",
    },
)


class Region(NamedTuple):
    """A part of a mosaic: what is nearer to its point than to any other."""

    value: int
    """Its value in the mask, which is the number of the photograph."""
    point: tuple[int, int]
    """Column and row in the image."""
    box: Box
    """The crop of the photograph that fills it."""


def regions(mosaics: MosaicDataset, split: Split, number: int, boxes: Mapping[int, list[Box]]) -> list[Region]:
    """Draw the regions of one image, from a key of its own; ``boxes`` are the split's bands of every photograph."""
    draw = generator(RngStream.BUILD, mosaics.key, mosaics.revision, SPLITS.index(split), number)
    count = int(draw.integers(*mosaics.regions, endpoint=True))
    values = draw.permutation(len(mosaics.photographs))[:count].tolist()
    while True:
        points = [(int(x), int(y)) for x, y in draw.integers(0, mosaics.size, (count, 2))]
        if all((a - c) ** 2 + (b - d) ** 2 >= mosaics.apart**2 for (a, b), (c, d) in combinations(points, 2)):
            break
    found = []
    for value, point in zip(values, points, strict=True):
        box = boxes[value][int(draw.integers(len(boxes[value])))]
        found.append(Region(value, point, square(draw, box, mosaics.sides)))
    return found


def mosaic(
    mosaics: MosaicDataset, parts: list[Region], photographs: Mapping[int, Image.Image]
) -> tuple[Image.Image, Image.Image]:
    """Return the image, mode RGB, and the mask, mode L, that the regions make."""
    rows, columns = np.indices((mosaics.size, mosaics.size))
    distances = np.stack([(columns - x) ** 2 + (rows - y) ** 2 for _, (x, y), _ in parts])
    nearest = distances.argmin(0)  # exact, in integers; the first of equals
    pixels = np.zeros((mosaics.size, mosaics.size, 3), np.uint8)
    for number, part in enumerate(parts):
        crop = photographs[part.value].crop(part.box)
        whole = np.asarray(crop.resize((mosaics.size, mosaics.size), Image.Resampling.BICUBIC))
        pixels[nearest == number] = whole[nearest == number]
    values = np.array([part.value for part in parts], np.uint8)
    return Image.fromarray(pixels), Image.fromarray(values[nearest])
