"""Open any dataset of images with masks; whatever its source, the result is a :class:`SegmentationDataset`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lutbench.data.catalogue import CATALOGUE
from lutbench.data.images import Split
from lutbench.data.scene_folder import Colour, SegmentationDataset, list_scenes
from lutbench.data.survey import Survey, survey_splits
from lutbench.data.toy import mosaics
from lutbench.errors import UserError, listed
from lutbench.files import read_json
from lutbench.recipes.segmentation import SegmentationDataRecipe

if TYPE_CHECKING:
    from lutbench.data.integrity import Scan
    from lutbench.data.manifest import IntegrityReport
    from lutbench.workspace import Workspace

__all__ = [
    "SegmentationDataset",
    "built_by",
    "check_pair",
    "few_files",
    "inspect",
    "needs",
    "open_dataset",
    "survey",
    "write_miniature",
]

FEW_SCENES: dict[Split, int] = {"train": 8, "val": 4}
"""Number of images per split in a smoke run."""


def open_dataset(recipe: SegmentationDataRecipe, split: Split, root: Path) -> SegmentationDataset:
    """List one split of a dataset below the data root; build mosaics if they do not exist.

    No image is decoded; :func:`lutbench.data.masks.check_masks` does that.

    Raises:
        UserError: if a folder is missing or empty, an image has no mask or a mask no image, two images have the same name, or ADE20K
            is incomplete; the message says what was expected where.
    """
    if toy := built_by(recipe):
        return toy.open(split, root)
    if recipe.source == "scenes":
        return list_scenes(recipe, split, root)
    colours = ade20k_colours()
    known = {
        "path": recipe.folder,
        "classes": list(colours),
        "palette": [list(colour) for colour in colours.values()],
        "reduce_zero_label": True,
    }
    dataset, images = list_scenes(recipe.model_copy(update=known), split, root), CATALOGUE["ade20k"].images
    if len(dataset) != images[split] and recipe.few is None:
        other = "val" if split == "train" else "train"
        swapped = f" That is the size of {other}: are the folders swapped?" if len(dataset) == images[other] else ""
        raise UserError(
            f"{dataset.name}: expected the {images[split]:,} images of ADE20K's {split} split in "
            f"{dataset.images.absolute()}, found {len(dataset):,}.{swapped} Unpack it completely. To use a part of "
            'it, set source = "scenes", classes and reduce_zero_label = true.'
        )
    return dataset


def survey(recipe: SegmentationDataRecipe, workspace: "Workspace") -> Survey:
    """Return what is known about a dataset before a run."""

    def size(dataset: SegmentationDataset) -> int:
        return int(dataset.sizes.sum()) + sum(dataset.mask_path(n).stat().st_size for n in range(len(dataset)))

    found = survey_splits(recipe, workspace, size)
    return replace(found, classes=len(recipe.classes)) if recipe.classes else found


def built_by(recipe: SegmentationDataRecipe) -> mosaics.MosaicDataset | None:
    """Return the builder of a dataset made from photographs; None for other datasets."""
    return mosaics.MOSAICS if recipe.source == "mosaics" else None


def needs(recipe: SegmentationDataRecipe, root: Path) -> dict[str, Path]:
    """Return the folders that the dataset needs, by their names in messages."""
    parts = [f"{kind}/{split}" for split in (recipe.train, recipe.val) for kind in ("images", "annotations")]
    return {part: root / recipe.folder / part for part in parts}


def inspect(dataset: SegmentationDataset, scan: "Scan", full: bool, report: "IntegrityReport") -> None:
    """Check the masks of the scanned images; if ``full``, also report classes that are in no mask."""
    from lutbench.data.masks import inspect_masks

    masks = inspect_masks(dataset, scan.indices.tolist())
    if masks.faults:
        report.problems.append(masks.problem)
        return
    if full and masks.lesson:
        report.problems.append(masks.lesson)
    report.lines.append(f"{dataset.split}: {len(scan.indices):,} masks checked; all match their images and the classes")
    if full and masks.absent:
        report.notes.append(f"{dataset.split}: no mask has pixels of {listed(masks.absent)}.")


def ade20k_colours() -> dict[str, Colour]:
    """Return ADE20K's 150 classes in the order of the mask values, with ADE20K's colours.

    They equal those of MMSegmentation's ADE20KDataset, which is not always installed and takes seconds to import.
    """
    colours = read_json(Path(__file__).with_name("ade20k.json"))
    return {name: (int(c[1:3], 16), int(c[3:5], 16), int(c[5:], 16)) for name, c in colours.items()}


def check_pair(train: SegmentationDataset, val: SegmentationDataset) -> None:
    """Check that a model trained on ``train`` can be evaluated on ``val``.

    Raises:
        UserError: if their classes or the meaning of their mask values differ, or both are the same images.
    """
    for what in ("classes", "reduce_zero_label", "ignore"):
        found = [getattr(dataset, what) for dataset in (train, val)]
        if found[0] != found[1]:
            raise UserError(
                f"{train.name}: expected the same {what} in train and val, found {found[0]} in train and {found[1]} in val."
            )
    if train.fingerprint == val.fingerprint:
        raise UserError(
            f"{train.name}: train ({train.images.absolute()}) and val ({val.images.absolute()}) are the same images. "
            "Set train and val to different folders."
        )


def few_files(recipe: SegmentationDataRecipe, root: Path) -> list[Path]:
    """Return the first images of each split with their masks, for smoke runs: MMSegmentation reads all files of a folder."""
    if not (root / recipe.folder).is_dir():
        return []
    found = []
    for split, count in FEW_SCENES.items():
        scenes = open_dataset(recipe.model_copy(update={"few": count}), split, root)  # if there are fewer, all of them
        found += [
            path(index) for index in range(min(count, len(scenes))) for path in (scenes.image_path, scenes.mask_path)
        ]
    return found


def write_miniature(recipe: SegmentationDataRecipe, root: Path, side: int, classes: Sequence[str] = ()) -> bool:
    """Write a miniature version of the dataset below ``root``, with images of ``side`` pixels in height."""
    from lutbench.data.toy.miniatures import is_miniature, miniature, write_scenes

    if is_miniature(root / recipe.folder, current=True):
        return False
    reduces = recipe.source == "ade20k" or recipe.reduce_zero_label
    with miniature(root / recipe.folder) as home:
        write_scenes(recipe, home, side, len(recipe.classes or ade20k_colours()), 0 if reduces else recipe.ignore)
    return True
