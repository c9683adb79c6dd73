"""What is known of a robustness dataset without making or decoding anything of it: for plans."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lutbench.data.catalogue import TRAINED_ON, known_by, location
from lutbench.data.folder import open_folder
from lutbench.data.survey import Holding, Survey, to_come
from lutbench.errors import UserError
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from lutbench.workspace import Workspace
from robustness.condition_outcomes import KNOWN
from robustness.datasets import DatasetListing, DatasetState, condition_folders, look_for
from robustness.toy_sets import SETS


def survey(recipe: RobustnessDatasetRecipe, workspace: Workspace) -> Survey:
    """Survey a robustness dataset; its one split is ``test``, all conditions together.

    An image that is occluded counts for every occlusion. Its classes are those of the classifier that is measured.
    """
    root = workspace.data.absolute()
    try:
        listing: DatasetListing = workspace.open(recipe, "test")
    except UserError:  # nothing of it is present
        listing = look_for(recipe, workspace.data)
    whole = listing.state is DatasetState.WHOLE
    counts = list(listing.images.values()) if whole else _expected(recipe, root)
    known = known_by(recipe)
    return Survey(
        problem="" if whole else " ".join(listing.problems),
        images={"test": sum(count or 0 for count in counts)} if None not in counts else {},
        classes=0,
        holdings=tuple(_holdings(recipe, root, whole)),
        known=known.name if known else "",
        lacks="" if whole else _lacks(recipe, listing, root, known is not None),
    )


def _lacks(recipe: RobustnessDatasetRecipe, listing: DatasetListing, root: Path, is_known: bool) -> str:
    built = [location(known, root) for known in TRAINED_ON.values() if known.built]
    if recipe.source != "folder" or any(map(listing.where.is_relative_to, built)):
        return ""  # the suite makes it
    absent = listing.state is DatasetState.ABSENT
    lacks = f"not at {listing.where}" if absent else " ".join(listing.problems[:2])
    return lacks if is_known else f"{recipe.name}: {lacks}"


def _holdings(recipe: RobustnessDatasetRecipe, root: Path, whole: bool) -> Iterator[Holding]:
    """Yield the datasets that it is made of, or that hold its known images, and its own files."""
    if recipe.source == "corrupted":
        each, conditions = _copied(recipe, root), len(_corruptions(recipe)) * len(recipe.severities)
        size = None if each is None else conditions * each * 3 * recipe.copy_side**2
        yield Holding(f"{recipe.name}, a corrupted copy", (root / recipe.path,), whole, size)
    if recipe.source != "folder":
        return
    for folder in filter(None, (recipe.folder, recipe.known)):
        for known in TRAINED_ON.values():
            path = location(known, root)
            if (root / folder).is_relative_to(path):
                yield Holding(known.name, (path,), True) if path.exists() else to_come(known.name, (path,), known)
    known_set = known_by(recipe)
    paths = tuple(root / recipe.folder / part for part in recipe.parts.values())
    name = known_set.name if known_set else recipe.name
    yield Holding(name, paths, True) if whole else to_come(name, paths, known_set)


def _expected(recipe: RobustnessDatasetRecipe, root: Path) -> list[int | None]:
    """Return the images of every condition of a dataset that is not whole, None where nothing says."""
    if recipe.source == "corrupted":
        return [_copied(recipe, root)] * (len(_corruptions(recipe)) * len(recipe.severities))
    return [_condition(recipe, name, folder, root) for name, folder in condition_folders(recipe, root).items()]


def _condition(recipe: RobustnessDatasetRecipe, name: str, folder: Path, root: Path) -> int | None:
    if isinstance(recipe.images, dict) and name in recipe.images:
        return recipe.images[name]
    if isinstance(recipe.images, int):
        return recipe.images
    if recipe.source in SETS and name != KNOWN:
        return SETS[recipe.source].images
    return _known_folder(folder, root)[1]


def _copied(recipe: RobustnessDatasetRecipe, root: Path) -> int | None:
    """Return the images in each condition of a corrupted copy."""
    folder, most = root / recipe.copy_of, recipe.copy_per_class
    if folder.is_dir():
        try:
            labels = open_folder(folder, recipe.name, folder.name).labels
        except UserError:
            return None
        counts = np.bincount(labels) if labels is not None else np.zeros(0, np.int64)
        return int(counts.sum() if most is None else np.minimum(counts, most).sum())
    classes, whole = _known_folder(folder, root)
    return whole if most is None or whole is None else min(whole, classes * most)


def _corruptions(recipe: RobustnessDatasetRecipe) -> tuple[str, ...]:
    """Return the corruptions of a corrupted copy, the extra ones last."""
    from robustness.corruptions import CORRUPTIONS  # here, because scikit-image takes a second to import

    main = recipe.corruptions or [name for name in CORRUPTIONS if name not in recipe.extra]
    return (*main, *(name for name in recipe.extra if name not in main))


def _known_folder(folder: Path, root: Path) -> tuple[int, int | None]:
    """Return classes and images of the known dataset whose split lies in a folder that may be absent."""
    for known in TRAINED_ON.values():
        for split in ("train", "val"):
            name = getattr(known.recipe, split)
            if known.recipe.printed_metric != "mIoU" and folder == location(known, root) / name:
                return known.classes, known.images.get(split)
    return 0, None
