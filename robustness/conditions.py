"""One condition of a robustness dataset, opened for a classifier: its images, and what is asked of every one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutbench.data.images import ImageDataset
from lutbench.errors import UserError
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.condition_outcomes import REAL, UNKNOWN
from robustness.datasets import DatasetListing, condition_folders, known_class_folders, list_condition
from robustness.labels import Answer, LabelSpace, answers_of, imagenet_subset, real_labels, val_numbers
from robustness.occlusion import check_grid
from robustness.preprocessing import check_stored_size
from robustness.protocols import Protocol


@dataclass(frozen=True)
class Condition:
    """A condition, opened for a classifier."""

    name: str
    images: ImageDataset
    labels: NDArray[np.int64]
    """(n,) Each image's class among those of ``images``; 0 for images of no class."""
    protocols: tuple[Protocol, ...]
    """Questions about its images; tables print the first."""


def open_condition(recipe: RobustnessDatasetRecipe, root: Path, condition: str, space: LabelSpace) -> Condition:
    """List a condition and lay out what a classifier with the classes of ``space`` is asked of it.

    Raises:
        UserError: if it is absent or not laid out as expected, or its labels are no classes of the classifier.
    """
    images = list_condition(recipe, condition, condition_folders(recipe, root)[condition])
    labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
    return Condition(condition, images, labels, tuple(_protocols(recipe, root, condition, images, labels, space)))


def check_labels(recipe: RobustnessDatasetRecipe, root: Path, found: DatasetListing, space: LabelSpace) -> None:
    """Check that a dataset that was found can be asked of a classifier with the classes of ``space``.

    Raises:
        UserError: if its labels are no classes of the classifier.
    """
    folders = known_class_folders(recipe, root) if recipe.kind == "detection" else found.classes
    _answers(recipe, root, folders, space)


def check_set(recipe: RobustnessDatasetRecipe, root: Path, found: DatasetListing, space: LabelSpace, side: int) -> None:
    """Check that a dataset that was found can be shown to a classifier with these classes and this side of its input.

    Raises:
        UserError: if its labels are no classes of the classifier, its images are stored at another size than its
            protocol takes, or the input cannot be cut into its patches.
    """
    check_labels(recipe, root, found, space)
    if recipe.kind == "occlusion":
        for kind, many in recipe.occlusions.values():
            check_grid(side, recipe.drop_grid if kind == "drop" else many)
    first, folder = next(iter(condition_folders(recipe, root).items()))
    check_stored_size(list_condition(recipe, first, folder), recipe, side)


def _protocols(
    recipe: RobustnessDatasetRecipe,
    root: Path,
    condition: str,
    images: ImageDataset,
    labels: NDArray[np.int64],
    space: LabelSpace,
) -> Iterator[Protocol]:
    folders = known_class_folders(recipe, root) if recipe.kind == "detection" else images.classes
    answers = _answers(recipe, root, folders, space)
    own = sorted({number for answer in answers for number in answer})
    subset = imagenet_subset(recipe.subset) if recipe.subset else tuple(own)
    kinds = {"all": (f"{len(space.names)} classes", None), "subset": (f"{_count(recipe, folders)} classes", subset)}
    if recipe.kind == "detection" and condition == UNKNOWN:
        answers = ((),)
    for name, columns in dict(kinds[logits] for logits in recipe.logits).items():
        yield Protocol(name, columns, answers, labels)
    if recipe.real:
        if not space.imagenet:
            raise UserError(
                f'real = {recipe.real!r}: ReaL\'s labels are for classifiers of ImageNet-1k. Set real = "".'
            )
        every = real_labels(None if recipe.real == "timm" else root / recipe.real)
        numbers = val_numbers(images.image_name(index) for index in range(len(images)))
        unlike = {answer: index for index, answer in enumerate(dict.fromkeys(every))}
        yield Protocol(REAL, None, tuple(unlike), np.array([unlike[every[number]] for number in numbers], np.int64))


def _answers(
    recipe: RobustnessDatasetRecipe, root: Path, folders: tuple[str, ...], space: LabelSpace
) -> tuple[Answer, ...]:
    if not folders:
        raise UserError(f"{recipe.name}: expected class folders, found images without labels.")
    return answers_of(recipe.labels, folders, space, root / recipe.labels)


def _count(recipe: RobustnessDatasetRecipe, folders: tuple[str, ...]) -> int:
    """Return the number of the dataset's classes, each of which may be several of the classifier's."""
    return len(imagenet_subset(recipe.subset)) if recipe.subset else len(folders)
