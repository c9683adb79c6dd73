"""How many images a run looks at: the sets as they are there, else as published, and what the recipe does with them.

A look is one image that goes once through the network: six scales of an image, or two ways to resize it, are so many.
"""

from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lutbench.data.catalogue import PRESENT, TRAINED_ON, KnownDataset, status_of
from lutbench.data.folder import open_folder
from lutbench.data.images import Split
from lutbench.errors import UserError
from lutbench.plan.compute import MULTI_SCALE
from lutbench.recipes import (
    ClassificationRecipe,
    DataRecipe,
    FinetuneRecipe,
    LinearRecipe,
    PretrainRecipe,
    SegmentationDataRecipe,
    SegmentationRecipe,
)
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.workspace import Workspace
from robustness.condition_outcomes import KNOWN
from robustness.datasets import DatasetListing, DatasetState, condition_folders, look_for
from robustness.toy_sets import SETS

AnyData = DataRecipe | SegmentationDataRecipe

BUILT_HERE = ("photographs", "photograph-tiles", "mosaics")


class Samples(NamedTuple):
    """Images that go through the network in one run."""

    train: int
    """Trained on, or encoded for a probe."""
    evaluate: int

    @property
    def all(self) -> int:
        """Both."""
        return self.train + self.evaluate


@dataclass
class Counts:
    """Numbers of images of the sets of a suite. Nothing is built or downloaded to count it."""

    workspace: Workspace
    _problems: dict[str, str] = field(default_factory=dict)
    _copied: dict[str, int | None] = field(default_factory=dict)

    def is_here(self, data: AnyData, split: Split = "train") -> bool:
        """Whether a split can be listed as it lies."""
        return bool(split == "train" or data.val) and self._problem(data, split) == ""

    def problem(self, data: AnyData) -> str:
        """Why a set cannot be listed; empty if it can."""
        return self._problem(data, "train") or (self._problem(data, "val") if data.val else "")

    def images(self, data: AnyData, split: Split) -> int | None:
        """Of a split: listed, else as published under this name and split; None if nothing says."""
        if self.is_here(data, split):
            opened = self.workspace.open(data, split) if isinstance(data, SegmentationDataRecipe) else None
            return len(opened if opened is not None else self.workspace.open(data, split))
        known = known_of(data)
        if known is None or getattr(known.recipe, split) != getattr(data, split):
            return None
        return known.images.get(split)

    def classes(self, data: AnyData) -> int:
        """Listed, else as published; 0 if nothing says, which leaves the last layer out."""
        if isinstance(data, SegmentationDataRecipe) and data.classes:
            return len(data.classes)
        if isinstance(data, DataRecipe) and self.is_here(data):
            return len(self.workspace.open(data, "train").classes)
        known = known_of(data)
        return 0 if known is None else known.classes

    def cells(self, shifted: RobustnessDatasetRecipe) -> int | None:
        """Images of all cells of a shifted set together; an occluded image counts for every occlusion."""
        found = look_for(shifted, self.workspace.data)
        if found.state is DatasetState.WHOLE:
            return sum(found.images.values())
        each = [self._cell(shifted, cell, folder) for cell, folder in self._expected(shifted, found)]
        return None if None in each else sum(count for count in each if count is not None)

    def copied(self, shifted: RobustnessDatasetRecipe) -> int | None:
        """Images in each cell of a corrupted copy."""
        key = f"copied {shifted.copy_of} {shifted.copy_per_class}"
        if key not in self._copied:
            self._copied[key] = self._count_copied(shifted)
        return self._copied[key]

    def _count_copied(self, shifted: RobustnessDatasetRecipe) -> int | None:
        folder, most = self.workspace.data / shifted.copy_of, shifted.copy_per_class
        if folder.is_dir():
            try:
                labels = open_folder(folder, shifted.name, folder.name).labels
            except UserError:
                return None
            counts = np.bincount(labels) if labels is not None else np.zeros(0, np.int64)
            return int(counts.sum() if most is None else np.minimum(counts, most).sum())
        known, whole = self._known_folder(folder)
        if known is None or whole is None:
            return None
        return whole if most is None else min(whole, known.classes * most)

    def _problem(self, data: AnyData, split: Split) -> str:
        key = f"{split} {data.model_dump_json()}"
        if key not in self._problems:
            self._problems[key] = self._tried(data, split)
        return self._problems[key]

    def _tried(self, data: AnyData, split: Split) -> str:
        known, where = known_of(data), self.workspace.data / data.path
        if data.source in BUILT_HERE and not (self.workspace.data / data.source / "manifest.json").is_file():
            return f"{data.source}: built when it is first used."
        here = where.exists() or (known is not None and status_of(known, self.workspace.data).state == PRESENT)
        if data.source == "huggingface" and not here:  # to open it would be to download it
            return f"{data.label or data.path}: not at {where.absolute()}; it would be fetched from the Hub."
        try:
            if isinstance(data, SegmentationDataRecipe):
                self.workspace.open(data, split)
            else:
                self.workspace.open(data, split)
        except UserError as error:
            return str(error)
        return ""

    def _expected(self, shifted: RobustnessDatasetRecipe, found: DatasetListing) -> list[tuple[str, Path]]:
        """The cells of a set that is not there, or not whole: name and folder."""
        if shifted.source != "corrupted":
            return list(condition_folders(shifted, self.workspace.data).items())
        names = corruptions_of(shifted)
        return [(f"{name}/{level}", found.where / name / str(level)) for name in names for level in shifted.severities]

    def _cell(self, shifted: RobustnessDatasetRecipe, cell: str, folder: Path) -> int | None:
        if shifted.source == "corrupted":
            return self.copied(shifted)
        if isinstance(shifted.images, dict) and cell in shifted.images:
            return shifted.images[cell]
        if isinstance(shifted.images, int):
            return shifted.images
        if shifted.source in SETS and cell != KNOWN:
            return SETS[shifted.source].images
        return self._known_folder(folder)[1]

    def _known_folder(self, folder: Path) -> tuple[KnownDataset | None, int | None]:
        """The known set whose split lies in a folder that is not there, and its images."""
        root = self.workspace.data
        for known in TRAINED_ON.values():
            place = root / (known.recipe.path or known.name)
            for split in ("train", "val"):
                if isinstance(known.recipe, DataRecipe) and folder == place / getattr(known.recipe, split):
                    return known, known.images.get(split)
        return None, None


def known_of(data: AnyData) -> KnownDataset | None:
    """The set of the catalogue that a suite file means: the same source, and the same folder or name on the Hub."""
    if data.source in BUILT_HERE:
        return TRAINED_ON[data.source]
    path = data.path or ("ADEChallengeData2016" if data.source == "ade20k" else "")
    here = (data.source, path)
    return next((known for known in TRAINED_ON.values() if (known.recipe.source, known.recipe.path) == here), None)


def corruptions_of(shifted: RobustnessDatasetRecipe) -> tuple[str, ...]:
    """Those of a corrupted copy, the extra ones last."""
    from robustness.corruptions import CORRUPTIONS  # here, because scikit-image takes a second to import

    main = shifted.corruptions or [name for name in CORRUPTIONS if name not in shifted.extra]
    return (*main, *(name for name in shifted.extra if name not in main))


def samples_of(recipe: RunRecipe, counts: Counts) -> Samples | None:
    """What one run looks at; None where the size of a set is not known."""
    if isinstance(recipe, RobustnessRecipe):
        cells = counts.cells(recipe.set)
        return None if cells is None else Samples(0, cells * len(recipe.set.preprocessing))
    assert isinstance(recipe, PretrainRecipe | ClassificationRecipe | SegmentationRecipe)
    train = counts.images(recipe.data, "train")
    if isinstance(recipe, PretrainRecipe):
        return None if train is None else Samples(recipe.epochs * train, 0)
    val = counts.images(recipe.data, "val")
    if isinstance(recipe, SegmentationRecipe):
        if val is None:
            return None
        evaluations = ceil(recipe.iterations / recipe.val_every) if recipe.val_every else 1
        return Samples(recipe.iterations * recipe.batch, val * (evaluations + MULTI_SCALE * recipe.tta))
    if train is None or val is None:
        return None
    if isinstance(recipe, FinetuneRecipe):
        on_the_way = (recipe.epochs - 1) // recipe.eval_every if recipe.eval_every else 0
        return Samples(recipe.epochs * train, val * (on_the_way + 1))
    epochs = recipe.epochs if isinstance(recipe, LinearRecipe) and recipe.fresh_crops else 1
    return Samples(epochs * train, val)


def kept_checkpoints(recipe: RunRecipe, counts: Counts, keep: int) -> int:
    """How many checkpoints of a run stay, of which at most ``keep`` do; that many where the size of its set is not known."""
    if isinstance(recipe, SegmentationRecipe):
        return min(keep, (recipe.iterations - 1) // recipe.save_every + 1)
    if not isinstance(recipe, PretrainRecipe | FinetuneRecipe | LinearRecipe):
        return 0
    if isinstance(recipe, LinearRecipe) and not recipe.fresh_crops:
        return 0
    train = counts.images(recipe.data, "train")
    if train is None:
        return keep
    steps = ceil(recipe.epochs * train / recipe.batch)
    every = max(1, steps // recipe.epochs) if isinstance(recipe, LinearRecipe) else recipe.save_every
    return min(keep, (steps - 1) // every)
