"""List a robustness dataset on disk, one condition at a time.

A condition is a folder with class folders: a part of the dataset, or CORRUPTION/SEVERITY. Before a run, images, classes, parts and
severities are counted, and missing ones are reported. A dataset that does not exist at all is ``not run``: a state, not an error.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from lutbench.data.few import few_of
from lutbench.data.folder import FolderImages, open_folder
from lutbench.data.walking import ARCHIVE_LITTER
from lutbench.errors import UserError, listed
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.condition_outcomes import KNOWN, UNKNOWN
from robustness.corrupted_folder import open_corrupted
from robustness.corruption_names import CORRUPTIONS
from robustness.labels import known_folders
from robustness.toy_sets import SETS


class DatasetState(StrEnum):
    """How much of a dataset is present."""

    WHOLE = "whole"
    INCOMPLETE = "incomplete"
    ABSENT = "not run"


@dataclass(frozen=True)
class DatasetListing:
    """What of a dataset is present."""

    name: str
    path: Path
    state: DatasetState
    problems: tuple[str, ...]
    """What is missing or not as published; why the dataset is not run."""
    images: dict[str, int]
    """Images of every condition that is present."""
    classes: tuple[str, ...]
    """Class folders of all conditions together."""
    fingerprint: str
    """Hex digest of all conditions together, which tells two contents apart."""

    def require(self) -> None:
        """Stop before anything runs if the dataset is not whole.

        Raises:
            UserError: saying what is missing.
        """
        if self.state is not DatasetState.WHOLE:
            rest = len(self.problems) - 6
            problems = " ".join(self.problems[:6]) + (f" And {rest} more problems." if rest > 0 else "")
            raise UserError(f"{self.name}: {self.state} at {self.path}: {problems}")


Visitor = Callable[[str, FolderImages], None]


def look_for(recipe: RobustnessDatasetRecipe, root: Path, visit: Visitor | None = None) -> DatasetListing:
    """List a dataset below the data root and compare it with what is expected of it.

    ``visit`` is called with the name and the images of every condition that can be listed; the listing is not kept.
    Conditions that are one folder are visited once.
    """
    name, path = recipe.name, (root / recipe.folder).absolute()
    folders = condition_folders(recipe, root)
    missing = [condition for condition, folder in folders.items() if not folder.is_dir()]
    if not path.is_dir() or len(missing) == len(folders):
        what = f"all of it is missing ({_grouped(recipe, missing)})." if path.is_dir() else "the folder does not exist."
        return DatasetListing(name, path, DatasetState.ABSENT, (what,), {}, (), "")
    problems = [f"missing: {_grouped(recipe, missing)}."] if missing else []
    images, classes, fingerprints, order = {}, set[str](), [], {}
    last: dict[Path, FolderImages] = {}
    for condition, folder in folders.items():
        if condition in missing:
            continue
        try:
            found = last[folder] if folder in last else list_condition(recipe, condition, folder)
        except UserError as error:
            problems.append(str(error))
            continue
        if visit and folder not in last:
            visit(condition, found)
        last = {folder: found}  # one listing is kept at a time: ImageNet-C's are 5 million names
        images[condition] = len(found)
        classes |= set(found.classes)
        fingerprints.append(f"{condition} {found.fingerprint}")
        order[condition] = hashlib.sha256(found.names).hexdigest() if recipe.kind == "corruptions" else ""
        problems += _unexpected(recipe, condition, found)
    others = [condition for condition, digest in order.items() if digest != next(iter(order.values()))]
    if others:
        problems.append(f"{listed(others)}: expected the same images as in {next(iter(order))}, found others.")
    state = DatasetState.INCOMPLETE if problems else DatasetState.WHOLE
    digest = hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
    return DatasetListing(name, path, state, tuple(problems), images, tuple(sorted(classes)), digest)


def condition_folders(recipe: RobustnessDatasetRecipe, root: Path) -> dict[str, Path]:
    """Return the folder of every condition of a dataset by the condition's name, present or not."""
    path = root / recipe.folder
    if recipe.kind == "detection":
        return {KNOWN: root / recipe.known, UNKNOWN: path}
    if recipe.kind == "occlusion":
        return dict.fromkeys(recipe.occlusions, path)
    if recipe.kind == "classes":
        return {name: path / folder for name, folder in recipe.parts.items()}
    present = (
        sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != ARCHIVE_LITTER)
        if path.is_dir()
        else []
    )
    main = recipe.corruptions or [name for name in present if name not in recipe.extra]
    extra = [name for name in recipe.extra if name not in main] if set(present) & set(recipe.extra) else []
    return {f"{name}/{level}": path / name / str(level) for name in (*main, *extra) for level in recipe.severities}


def copied_corruptions(recipe: RobustnessDatasetRecipe) -> list[str]:
    """Return the corruptions of a corrupted copy, the extra ones last."""
    main = recipe.corruptions or [name for name in CORRUPTIONS if name not in recipe.extra]
    return list(dict.fromkeys([*main, *recipe.extra]))


def list_condition(recipe: RobustnessDatasetRecipe, condition: str, folder: Path) -> FolderImages:
    """List the images of a condition that count.

    Raises:
        UserError: if the folder is missing or not laid out as expected.
    """
    images = _list_all(recipe, condition, folder)
    return images if recipe.few is None else images.at(few_of(images, recipe.few))


def _list_all(recipe: RobustnessDatasetRecipe, condition: str, folder: Path) -> FolderImages:
    if recipe.source == "corrupted":
        corruption, level = condition.rsplit("/", 1)
        return open_corrupted(folder.parents[1], corruption, int(level))
    if recipe.source == folder.name:
        images = SETS[recipe.source].open("test", folder.parent)
    else:
        images = open_folder(folder, recipe.name, condition or folder.name)
    if recipe.kind == "detection" and condition == UNKNOWN:
        return replace(images, labels=None, classes=())
    if images.labels is not None and (recipe.labels == "objectnet" or (recipe.kind == "detection" and recipe.subset)):
        return images.of_classes(frozenset(known_folders(recipe.labels, recipe.subset) or ()))
    return images


def _unexpected(recipe: RobustnessDatasetRecipe, condition: str, found: FolderImages) -> Iterator[str]:
    """Yield what differs from the counts that the recipe gives."""
    prefix = f"{condition}: " if condition else ""
    images = recipe.images.get(condition) if isinstance(recipe.images, Mapping) else recipe.images
    known = known_folders(recipe.labels, recipe.subset)
    unlabelled = recipe.kind == "detection" and condition == UNKNOWN
    if not unlabelled and recipe.classes is not None and len(found.classes) != recipe.classes:
        absent = [name for name in known if name not in set(found.classes)] if known else []
        named = f"; missing: {listed(absent)}" if absent else ""
        yield f"{prefix}expected {recipe.classes:,} classes, found {len(found.classes):,}{named}."
    if images is not None and len(found) != images:
        yield f"{prefix}expected {images:,} images, found {len(found):,} ({len(found) - images:+,})."


def _grouped(recipe: RobustnessDatasetRecipe, conditions: list[str]) -> str:
    """Return the names of conditions for a message; a corruption that lacks every severity is named once."""
    if recipe.kind != "corruptions":
        return listed(conditions, 10)
    levels: dict[str, list[str]] = {}
    for condition in conditions:
        name, level = condition.rsplit("/", 1)
        levels.setdefault(name, []).append(level)
    every = len(recipe.severities)
    return listed((n if len(some) == every else f"{n} at {', '.join(some)}" for n, some in levels.items()), 20)
