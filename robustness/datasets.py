"""The door to every robustness dataset: what of it is on disk, and its conditions, listed one at a time.

A condition is a folder of class folders: a part of the dataset, or CORRUPTION/SEVERITY. Listing is all that happens before
anything runs: images, classes, parts and severities are counted, and what is missing is named. A dataset of which nothing
is present is ``not run``: a state, not an error.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.catalogue import KnownDataset
from lutbench.data.folder import FolderImages, fingerprint_of, open_folder
from lutbench.data.toy.photographs import BUILT
from lutbench.errors import NotRun, UserError, listed
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.condition_outcomes import KNOWN, UNKNOWN
from robustness.labels import known_folders
from robustness.toy_sets import SETS

if TYPE_CHECKING:
    from lutbench.data.manifest import SplitMetadata
    from lutbench.data.survey import Survey
    from lutbench.data.verify import VerifyReport
    from lutbench.workspace import Workspace


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
            problems = " ".join(self.problems[:6]) + (f" And {rest} problems more." if rest > 0 else "")
            raise UserError(f"{self.name}: {self.state} at {self.path}: {problems}")


@dataclass
class ChosenImages:
    """The images of some class folders of a dataset, in the order of the dataset."""

    whole: FolderImages
    index: NDArray[np.int64]
    """(n,) Indices of the images in the whole dataset."""
    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    skip_undecodable: bool
    fingerprint: str

    @classmethod
    def of(cls, whole: FolderImages, folders: frozenset[str]) -> "ChosenImages":
        """Choose the images in ``folders``; the other class folders do not count."""
        assert whole.labels is not None
        old_labels = [label for label, name in enumerate(whole.classes) if name in folders]
        index = np.flatnonzero(np.isin(whole.labels, old_labels))
        chosen = tuple(whole.classes[label] for label in old_labels)
        labels = np.searchsorted(old_labels, whole.labels[index])
        fingerprint = fingerprint_of(list(chosen), whole.fingerprint.encode())
        return cls(whole, index, whole.name, whole.split, chosen, labels, whole.skip_undecodable, fingerprint)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n,) Bytes of each file."""
        return self.whole.sizes[self.index]

    def content(self, index: int) -> bytes:
        """Return the file of an image, as it is. Raises UserError if it cannot be read."""
        return self.whole.content(int(self.index[index]))

    def image(self, index: int) -> Image.Image:
        """Return an image, mode RGB. Raises UndecodableImage."""
        return self.whole.image(int(self.index[index]))

    def image_name(self, index: int) -> str:
        """Return the file's name relative to the condition's folder."""
        return self.whole.image_name(int(self.index[index]))


Visitor = Callable[[str, FolderImages | ChosenImages], None]


def survey(recipe: RobustnessDatasetRecipe, workspace: "Workspace") -> "Survey":
    """Return what is known of a dataset before anything runs, see :func:`robustness.survey.survey`."""
    from robustness.survey import survey  # here, because it lists datasets by the functions of this file

    return survey(recipe, workspace)


def needs(recipe: RobustnessDatasetRecipe, root: Path) -> dict[str, Path]:
    """Return the folders without which a dataset is not whole, by the names that messages give them."""
    path = root / recipe.folder
    names = recipe.corruptions if recipe.kind == "corruptions" else list(recipe.parts.values())
    found = {name: path / name for name in names or [""]}
    return found | ({recipe.known: root / recipe.known} if recipe.known else {})


def make(recipe: RobustnessDatasetRecipe, root: Path) -> bool:
    """Make a dataset below the data root if it is one of the suite's own and absent; return whether it was made now.

    Raises:
        UserError: if what it is made from is absent or cannot be decoded, or it cannot be written.
    """
    if recipe.source in SETS:
        return SETS[recipe.source].build(root)
    if recipe.source != "corrupted":
        return False
    from robustness.corrupted import build_corrupted  # here, because scikit-image takes a second to import
    from robustness.corruptions import CORRUPTIONS

    first = Path(recipe.copy_of).parts[0]
    if first in BUILT:
        BUILT[first].build(root)
    folder = root / recipe.copy_of
    return build_corrupted(
        open_folder(folder, first, folder.name),
        root / recipe.path,
        (*(recipe.corruptions or [name for name in CORRUPTIONS if name not in recipe.extra]), *recipe.extra),
        recipe.severities,
        side=recipe.copy_side,
        per_class=recipe.copy_per_class,
        workers=os.cpu_count() or 1,
    )


def verify(
    known: KnownDataset, root: Path, full: bool, report: "VerifyReport"
) -> "tuple[dict[str, SplitMetadata], str]":
    """Check a known dataset, see :func:`robustness.verify.verify`."""
    from robustness.verify import verify

    return verify(known, root, full, report)


def open_dataset(recipe: RobustnessDatasetRecipe, split: str, root: Path) -> DatasetListing:
    """List a dataset below the data root.

    Raises:
        NotRun: if nothing of it is present.
        UserError: the same of a dataset that the suite makes.
    """
    found = look_for(recipe, root)
    if found.state is DatasetState.ABSENT and recipe.source != "folder":
        raise UserError(f"{found.name} is not at {found.path} yet: it is made when it is first measured.")
    if found.state is DatasetState.ABSENT:
        raise NotRun(f"{found.name} is not at {found.path}: {found.problems[0]}")
    return found


def look_for(recipe: RobustnessDatasetRecipe, root: Path, visit: Visitor | None = None) -> DatasetListing:
    """List a dataset below the data root and compare it with what is expected of it.

    ``visit`` is called with the name and the images of every condition that can be listed; the listing is not kept.
    Conditions that are one folder are visited once.
    """
    name, path = recipe.name, (root / recipe.folder).absolute()
    folders = condition_folders(recipe, root)
    missing = [condition for condition, folder in folders.items() if not folder.is_dir()]
    if not path.is_dir() or len(missing) == len(folders):
        what = f"nothing of it is there ({_grouped(recipe, missing)})." if path.is_dir() else "there is no such folder."
        return DatasetListing(name, path, DatasetState.ABSENT, (what,), {}, (), "")
    problems = [f"missing: {_grouped(recipe, missing)}."] if missing else []
    images, classes, fingerprints, order = {}, set[str](), [], {}
    last: dict[Path, FolderImages | ChosenImages] = {}
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
        order[condition] = _names_digest(found) if recipe.kind == "corruptions" else ""
        problems += _unexpected(recipe, condition, found)
    others = [condition for condition, digest in order.items() if digest != next(iter(order.values()))]
    if others:
        problems.append(f"{listed(others)}: not the same images as {next(iter(order))}, as corruptions of one set are.")
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
        sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []
    )
    main = recipe.corruptions or [name for name in present if name not in recipe.extra]
    extra = [name for name in recipe.extra if name not in main] if set(present) & set(recipe.extra) else []
    return {f"{name}/{level}": path / name / str(level) for name in (*main, *extra) for level in recipe.severities}


def known_class_folders(recipe: RobustnessDatasetRecipe, root: Path) -> tuple[str, ...]:
    """Return the class folders of a detection's known images that count."""
    folder = root / recipe.known
    present = {p.name for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else set[str]()
    wanted = known_folders(recipe.labels, recipe.subset) if recipe.subset else None
    return tuple(sorted(present & set(wanted) if wanted else present))


def list_condition(recipe: RobustnessDatasetRecipe, condition: str, folder: Path) -> FolderImages | ChosenImages:
    """List the images of a condition that count.

    Raises:
        UserError: if the folder is missing or not laid out as expected.
    """
    if recipe.source == "corrupted":
        from robustness.corrupted import open_corrupted  # here, because scikit-image takes a second to import

        corruption, level = condition.rsplit("/", 1)
        return open_corrupted(folder.parents[1], corruption, int(level))
    if recipe.source == folder.name:
        images = SETS[recipe.source].open("test", folder.parent)
    else:
        images = open_folder(folder, recipe.name, condition or folder.name)
    if recipe.kind == "detection" and condition == UNKNOWN:
        return replace(images, labels=None, classes=())
    some = recipe.labels == "objectnet" or (recipe.kind == "detection" and recipe.subset != "")
    only = known_folders(recipe.labels, recipe.subset) if some else None
    return images if only is None or images.labels is None else ChosenImages.of(images, frozenset(only))


def _unexpected(recipe: RobustnessDatasetRecipe, condition: str, found: FolderImages | ChosenImages) -> Iterator[str]:
    """Yield what differs from the counts that the recipe gives."""
    prefix = f"{condition}: " if condition else ""
    images = recipe.images.get(condition) if isinstance(recipe.images, Mapping) else recipe.images
    known = known_folders(recipe.labels, recipe.subset)
    unlabelled = recipe.kind == "detection" and condition == UNKNOWN
    if not unlabelled and recipe.classes is not None and len(found.classes) != recipe.classes:
        absent = [name for name in known if name not in set(found.classes)] if known else []
        named = f"; missing: {listed(absent)}" if absent else ""
        yield f"{prefix}{recipe.classes:,} classes expected, {len(found.classes):,} found{named}."
    if images is not None and len(found) != images:
        yield f"{prefix}{images:,} images expected, {len(found):,} found ({len(found) - images:+,})."


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


def _names_digest(images: FolderImages | ChosenImages) -> str:
    assert isinstance(images, FolderImages)
    return hashlib.sha256(images.names).hexdigest()
