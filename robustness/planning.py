"""Survey of a robustness dataset before a run, see :mod:`lutbench.data.survey`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lutbench.data.catalogue import TRAINED_ON, KnownDataset, known_by, location
from lutbench.data.folder import open_folder
from lutbench.data.survey import DATA, DiskUse, Survey
from lutbench.errors import UserError
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from lutbench.workspace import Workspace
from robustness.condition_outcomes import KNOWN
from robustness.listing import DatasetListing, DatasetState, condition_folders, copied_corruptions
from robustness.toy_sets import SETS


def survey(recipe: RobustnessDatasetRecipe, workspace: Workspace) -> Survey:
    """Return what is known of a dataset; its split ``test`` has the images of all conditions together.

    An image counts once for every occlusion of it. Classes are those that are present or expected, not the classifier's.
    """
    root, known = workspace.data.absolute(), known_by(recipe)
    path = root / recipe.folder
    try:
        listing: DatasetListing | None = workspace.open(recipe, "test")
    except UserError:
        listing = None  # nothing of it is present
    whole = listing is not None and listing.state is DatasetState.WHOLE
    problem = " ".join(listing.problems[:2]) if listing else f"not at {path}"
    counts = list(listing.images.values()) if listing and whole else list(_expected(recipe, root))
    images = None if None in counts or not counts else sum(count or 0 for count in counts)
    built = [location(other, root) for other in TRAINED_ON.values() if other.built]
    return Survey(
        name=recipe.name,
        images={} if images is None else {"test": images},
        problems={} if whole else {"test": problem if known else f"{recipe.name}: {problem}"},
        classes=len(listing.classes) if listing else recipe.classes or 0,
        disk=tuple(_disk(recipe, root, whole, images, known)),
        made=recipe.source != "folder" or any(map(path.is_relative_to, built)),
        known=known.name if known else "",
    )


def _expected(recipe: RobustnessDatasetRecipe, root: Path) -> Iterator[int | None]:
    """Yield the images of every condition of a dataset that is not whole; None where nothing says how many."""
    if recipe.source == "corrupted":
        yield from [_copied(recipe, root)] * (len(copied_corruptions(recipe)) * len(recipe.severities))
        return
    for condition, folder in condition_folders(recipe, root).items():
        if isinstance(recipe.images, dict) and condition in recipe.images:
            yield recipe.images[condition]
        elif isinstance(recipe.images, int):
            yield recipe.images
        elif recipe.source in SETS and condition != KNOWN:
            yield SETS[recipe.source].images
        else:
            yield _published(folder, root)[1]


def _copied(recipe: RobustnessDatasetRecipe, root: Path) -> int | None:
    """Return how many images are corrupted; None if nothing says."""
    folder, most = root / recipe.copy_of, recipe.copy_per_class
    if folder.is_dir():
        try:
            labels = open_folder(folder, recipe.name, folder.name).labels
        except UserError:
            return None
        counts = np.zeros(0, np.int64) if labels is None else np.bincount(labels)
        return int(counts.sum() if most is None else np.minimum(counts, most).sum())
    classes, images = _published(folder, root)
    return images if images is None or most is None else min(images, classes * most)


def _published(folder: Path, root: Path) -> tuple[int, int | None]:
    """Return classes and images, as published, of the known dataset that has a split in ``folder``."""
    for known in TRAINED_ON.values():
        for split in known.recipe.splits:
            if folder == location(known, root) / getattr(known.recipe, split):
                return known.classes, known.images.get(split)
    return 0, None


def _disk(
    recipe: RobustnessDatasetRecipe, root: Path, whole: bool, images: int | None, known: KnownDataset | None
) -> Iterator[DiskUse]:
    """Yield the room of a corrupted copy; or of the known datasets whose images ``recipe`` is about, and its own.

    The suite's own small datasets are left out.
    """
    if recipe.source == "corrupted":
        size = None if images is None else images * 3 * recipe.copy_side**2  # pixels are not compressed
        present, to_come = (size, 0) if whole else (0, size)
        yield DiskUse(f"{recipe.name}, a corrupted copy", DATA, present, to_come, (root / recipe.path,))
    if recipe.source != "folder":
        return
    for folder in filter(None, (recipe.folder, recipe.known)):
        for other in TRAINED_ON.values():
            path = location(other, root)
            if (root / folder).is_relative_to(path):
                yield DiskUse.dataset(other.name, path.exists(), None, other.gigabytes, path)
    name, gigabytes = (known.name, known.gigabytes) if known else (recipe.name, None)
    yield DiskUse.dataset(
        name, whole, None, gigabytes, *(root / recipe.folder / part for part in recipe.parts.values())
    )
