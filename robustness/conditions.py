"""Open a condition of a robustness dataset for a classifier: its images, their labels and the protocols."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutbench.data.images import ImageDataset
from lutbench.errors import UserError
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.condition_outcomes import KNOWN, REAL, UNKNOWN
from robustness.labels import Answer, LabelSpace, answers_of, imagenet_subset, real_labels, val_numbers
from robustness.listing import DatasetListing, condition_folders, list_condition
from robustness.occlusion import check_grid
from robustness.preprocessing import all_views
from robustness.protocols import Protocol


@dataclass(frozen=True)
class Condition:
    """A condition, opened for a classifier."""

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
    folders = condition_folders(recipe, root)
    images = list_condition(recipe, condition, folders[condition])
    if recipe.kind == "detection" and condition == UNKNOWN:
        labels = np.zeros(len(images), np.int64)
        known = _answers(recipe, root, list_condition(recipe, KNOWN, folders[KNOWN]).classes, space)
        answers: tuple[Answer, ...] = ((),)
    else:
        known = answers = _answers(recipe, root, images.classes, space)
        assert images.labels is not None
        labels = images.labels
    protocols = [Protocol(name, columns, answers, labels) for name, columns in _competing(recipe, known, space).items()]
    if recipe.real:
        protocols.append(_real(recipe, root, images, space))
    return Condition(images, labels, tuple(protocols))


def check_set(recipe: RobustnessDatasetRecipe, root: Path, found: DatasetListing, space: LabelSpace, side: int) -> None:
    """Check that a dataset that was found can be shown to a classifier with these classes and this side of its input.

    Raises:
        UserError: if its labels are no classes of the classifier, its images are stored at another size than its
            protocol takes, or the input cannot be cut into its patches.
    """
    _answers(recipe, root, found.classes, space)
    if recipe.kind == "occlusion":
        for kind, many in recipe.occlusions.values():
            check_grid(side, recipe.drop_grid if kind == "drop" else many)
    first, folder = next(iter(condition_folders(recipe, root).items()))
    all_views(list_condition(recipe, first, folder).image(0), recipe, side, 1.0, IMAGENETS)


def _answers(
    recipe: RobustnessDatasetRecipe, root: Path, folders: tuple[str, ...], space: LabelSpace
) -> tuple[Answer, ...]:
    if not folders:
        raise UserError(f"{recipe.name}: expected class folders, found images without labels.")
    return answers_of(recipe.labels, folders, space, root / recipe.labels)


def _competing(
    recipe: RobustnessDatasetRecipe, answers: tuple[Answer, ...], space: LabelSpace
) -> dict[str, Answer | None]:
    """Return the classes that compete under every choice of logits, by the protocol's name; None where all do.

    The name counts the dataset's classes, each of which may be several of the classifier's.
    """
    subset = (
        imagenet_subset(recipe.subset)
        if recipe.subset
        else tuple(sorted({one for answer in answers for one in answer}))
    )
    count = len(subset if recipe.subset else answers)
    choices: dict[str, tuple[str, Answer | None]] = {
        "all": (f"{len(space.names)} classes", None),
        "subset": (f"{count} classes", subset),
    }
    return dict(choices[logits] for logits in recipe.logits)


def _real(recipe: RobustnessDatasetRecipe, root: Path, images: ImageDataset, space: LabelSpace) -> Protocol:
    if not space.imagenet:
        raise UserError(f'real = {recipe.real!r}: ReaL labels need a classifier of ImageNet-1k. Set real = "".')
    every = real_labels(None if recipe.real == "timm" else root / recipe.real)
    numbers = val_numbers(images.image_name(index) for index in range(len(images)))
    unlike = {answer: index for index, answer in enumerate(dict.fromkeys(every))}
    return Protocol(REAL, None, tuple(unlike), np.array([unlike[every[number]] for number in numbers], np.int64))
