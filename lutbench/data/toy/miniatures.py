"""Sets in miniature: the layout of a set that is not there, official lists and all, with a few drawn images.

For smoke runs (:mod:`lutbench.smoke`), which read them by the readers of the sets themselves. A miniature is written beside its
folder and renamed, so what is present is whole; what marks it is a file :data:`MINIATURE` in it.
"""

import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lutbench.data.official import MINIATURE
from lutbench.data.toy.drawn import drawn, save_drawn, write_lines
from lutbench.data.toy.official_sets import WRITERS
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.retrieval import RevisitedDataRecipe
from lutbench.recipes.segmentation import SegmentationDataRecipe

REVISION = "1"
"""Raised whenever what is written changes: older miniatures are then written anew."""

EACH = 8
"""Images of each class in each split, at least as many as a smoke run reads."""

CLASSES = ("ash", "birch", "cedar", "elm")
"""Of a set of class folders whose classes nothing else says."""

WELL_FILLED = ("n01784675", "n01820546", "n01910747", "n02317335", "n02655020", "n02672831")
"""The classes of ImageNet-1k with more than one image: classes of ImageNet-A, ImageNet-R and ImageNet-O, all three."""

THUMBNAIL = 32
"""Side, in pixels, of the one image of every other class of ImageNet-1k, which no smoke run reads."""

SCENES = {"train": 8, "val": 4}


@contextmanager
def miniature(home: Path) -> Iterator[Path]:
    """Give a folder to fill with a miniature, which takes the place of ``home`` when it is whole; its name is that of ``home``."""
    partial = home.parent / ".partial" / home.name
    shutil.rmtree(partial.parent, ignore_errors=True)  # left by a command that was killed
    partial.mkdir(parents=True)
    yield partial
    write_lines(partial / MINIATURE, [REVISION])
    if home.is_dir():
        shutil.rmtree(home)
    partial.rename(home)
    partial.parent.rmdir()


def is_miniature(home: Path, current: bool = False) -> bool:
    """Return whether a folder is a miniature, or one that is as it would be written today."""
    mark = home / MINIATURE
    return mark.is_file() and (not current or mark.read_text(encoding="utf-8").strip() == REVISION)


def write_images(recipe: DataRecipe, home: Path, side: int, imagenet: bool) -> None:
    """Fill ``home`` with a set of images of ``side`` pixels in the layout of its source; of class folders those of ``imagenet``'s classes."""
    if recipe.source == "huggingface":
        _hugging_face(recipe, home, side)
    elif recipe.source != "folder":
        WRITERS[recipe.source](home, EACH, side, (recipe.train, recipe.val))
    elif imagenet:
        _imagenet(home, side, (recipe.train, recipe.val))
    else:
        for number, split in enumerate((recipe.train, recipe.val) if recipe.val else (recipe.train,)):
            classes = CLASSES if split else ("",)  # a set without splits is a folder of images
            write_classes(home / split, classes, side, first=number * EACH)


def write_classes(
    folder: Path,
    classes: Sequence[str],
    side: int,
    first: int = 0,
    each: int = EACH,
    name: Callable[[str, int], str] = lambda _, number: f"{number:04d}.jpg",
) -> None:
    """Fill ``folder`` with class folders of ``each`` images, numbered on from ``first``, which ``name`` names by class and number."""
    for label, cls in enumerate(classes):
        for k in range(each):
            save_drawn(folder / cls / name(cls, first + label * each + k), label, first + k, side)


def val_name(_: str, number: int) -> str:
    """Return the name of a validation image of ImageNet-1k."""
    return f"ILSVRC2012_val_{number + 1:08d}.JPEG"


def _imagenet(home: Path, side: int, splits: tuple[str, str]) -> None:
    """Write ImageNet-1k: all thousand classes in train, as what is measured on it asks for, and a few in val."""
    from timm.data import ImageNetInfo  # here, because timm takes seconds to import

    def train_name(cls: str, number: int) -> str:
        return f"{cls}_{number}.JPEG"

    others = [cls for cls in ImageNetInfo().label_names() if cls not in WELL_FILLED]
    write_classes(home / splits[0], others, THUMBNAIL, each=1, name=train_name)
    write_classes(home / splits[0], WELL_FILLED, side, name=train_name)
    if splits[1]:
        write_classes(home / splits[1], WELL_FILLED, side, first=1000, name=val_name)


def _hugging_face(recipe: DataRecipe, home: Path, side: int) -> None:
    """Write what ``save_to_disk`` does, with the splits and columns that the recipe names."""
    import datasets  # here, because it takes a second to import

    columns: dict[str, Any] = {recipe.image_column: datasets.Image()}
    if recipe.label_column:
        columns[recipe.label_column] = datasets.ClassLabel(names=list(CLASSES))
    splits = dict.fromkeys(split.partition("[")[0] for split in (recipe.train, recipe.val) if split)
    saved = {}
    for number, split in enumerate(splits):
        labels = [label for label in range(len(CLASSES)) for _ in range(EACH)]
        images = [drawn(label, number * EACH + k, side) for k, label in enumerate(labels)]
        rows = {recipe.image_column: images, **({recipe.label_column: labels} if recipe.label_column else {})}
        saved[split] = datasets.Dataset.from_dict(rows, datasets.Features(columns))
    datasets.DatasetDict(saved).save_to_disk(home)


def write_scenes(recipe: SegmentationDataRecipe, home: Path, side: int, classes: int, ignored: int) -> None:
    """Fill ``home`` with scenes in ADE20K's layout, wider than high: boxes of two of so many ``classes`` in front of a third."""
    least = int(recipe.reduce_zero_label or recipe.source == "ade20k")
    for number, (split, count) in enumerate(SCENES.items()):
        folder = recipe.train if split == "train" else recipe.val
        for k in range(count):
            values = [least + (k + step) % classes for step in range(3)]
            mask = np.full((side, side * 4 // 3), values[0], np.uint8)
            mask[side // 4 : side // 2, side // 3 :] = values[1]
            mask[side // 2 :, : side // 2] = values[2]
            mask[:2] = ignored
            pixels = np.asarray(drawn(k % 3, 100 * number + k, mask.shape[1], side), np.int64)
            pixels = pixels + 40 * (mask == values[1])[..., None] - 40 * (mask == values[2])[..., None]
            image = home / "images" / folder / f"scene_{number}{k:03d}{recipe.image_suffixes[0]}"
            for path in (image, home / "annotations" / folder / f"scene_{number}{k:03d}{recipe.mask_suffix}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                content = pixels.clip(0, 255).astype(np.uint8) if path == image else mask
                Image.fromarray(content).save(path)


BUILDINGS = ("arch", "dome", "tower")


def write_revisited(recipe: RevisitedDataRecipe, home: Path, side: int, protocol: int = 2) -> None:
    """Fill ``home`` with three buildings, five photographs each and a query, and the pickle of lists as it is published."""
    database = [f"{name}_{number:06}" for name in BUILDINGS for number in range(5)]
    queries = [f"{name}_{9:06}" for name in BUILDINGS]
    for k, name in enumerate((*database, *queries)):
        save_drawn(home / "jpg" / f"{name}.jpg", BUILDINGS.index(name.split("_")[0]), k, side * 4 // 3, side)
    (home / recipe.lists).write_bytes(pickle.dumps(revisited_lists(database, queries, side), protocol))


def revisited_lists(database: Sequence[str], queries: Sequence[str], side: int = 24) -> dict[str, Any]:
    """Return lists as published: names without ending, places as arrays or lists of numbers, a box each."""
    gnd = []
    for query in queries:
        own = [place for place, name in enumerate(database) if name.split("_")[0] == query.split("_")[0]]
        box = [side / 6, side / 6, side * 7 / 6, side * 5 / 6]
        gnd.append({"bbx": box, "easy": np.array(own[:2]), "hard": own[2:4], "junk": np.array(own[4:])})
    return {"gnd": gnd, "imlist": list(database), "qimlist": list(queries)}
