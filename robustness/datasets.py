"""List, build, survey and check robustness datasets."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from lutbench.data.catalogue import KnownDataset
from lutbench.data.few import OF_CLASS
from lutbench.data.folder import FolderImages, open_folder
from lutbench.data.integrity import SAMPLE
from lutbench.data.layout import has_image
from lutbench.data.manifest import IntegrityReport, SplitMetadata
from lutbench.data.toy.miniatures import CLASSES, WELL_FILLED, is_miniature, miniature, val_name, write_classes
from lutbench.data.toy.photographs import BUILT
from lutbench.data.verify import VerifyReport, compare_built, metadata_of, scan_files
from lutbench.errors import NotRun, UserError
from lutbench.files import below
from lutbench.progress import LINE_EVERY, console
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.condition_outcomes import KNOWN
from robustness.labels import known_folders
from robustness.listing import DatasetListing, DatasetState, condition_folders, copied_corruptions, look_for
from robustness.planning import survey
from robustness.toy_sets import SETS, RobustnessToyDataset

__all__ = ["built_by", "few_files", "make", "needs", "open_dataset", "survey", "verify", "write_miniature"]

PER_CONDITION = 8
"""At least so many images of every condition are decoded."""


def open_dataset(recipe: RobustnessDatasetRecipe, split: str, root: Path) -> DatasetListing:
    """List a dataset below the data root.

    Raises:
        NotRun: if nothing of it is present.
        UserError: the same of a dataset that the suite makes.
    """
    found = look_for(recipe, root)
    if found.state is DatasetState.ABSENT and recipe.source != "folder":
        raise UserError(f"{found.name} does not exist at {found.path} yet: it is built on first use.")
    if found.state is DatasetState.ABSENT:
        raise NotRun(f"{found.name} is not at {found.path}: {found.problems[0]}")
    return found


def needs(recipe: RobustnessDatasetRecipe, root: Path) -> dict[str, Path]:
    """Return the folders without which a dataset is not whole, by the names that messages give them."""
    path = root / recipe.folder
    names = recipe.corruptions if recipe.kind == "corruptions" else list(recipe.parts.values())
    found = {name: path / name for name in names or [""]}
    return found | ({recipe.known: root / recipe.known} if recipe.known else {})


def few_files(recipe: RobustnessDatasetRecipe, root: Path) -> list[Path]:
    """Return the folders of a dataset that are there, and its labels, for a smoke run, which reads a few images of them."""
    parts = [part for part in dict.fromkeys(needs(recipe, root).values()) if part.is_dir()]
    labels = root / recipe.labels
    return [*parts, *([labels] if parts and labels.suffix == ".json" and labels.is_file() else [])]


def write_miniature(recipe: RobustnessDatasetRecipe, root: Path, side: int, classes: Sequence[str] = ()) -> bool:
    """Write those folders of the dataset below ``root`` that are not there, with images of ``side`` pixels and a few images each.

    ``classes`` are those of the classifiers that will be measured on it.
    """
    known = known_folders(recipe.labels, recipe.subset)
    names = known or tuple(classes) or CLASSES
    if known is not None and set(WELL_FILLED) <= set(known):
        names = WELL_FILLED  # those that ImageNet's own validation images are of
    labels = root / recipe.labels
    if recipe.labels.endswith(".json") and not labels.is_file():
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(json.dumps({name: name for name in names}), encoding="utf-8")
    folders = dict.fromkeys(condition_folders(recipe, root).values())
    drawn = [one for one in folders if not one.is_dir() or (is_miniature(one) and not is_miniature(one, current=True))]
    for folder in drawn:
        with miniature(folder) as home:
            write_classes(home, names[: len(WELL_FILLED)], side, first=1000, each=OF_CLASS, name=val_name)
    return bool(drawn)


def built_by(recipe: RobustnessDatasetRecipe) -> RobustnessToyDataset | None:
    """Return what builds a dataset from photographs; None if it is not one of the suite's own."""
    return SETS.get(recipe.source)


def make(recipe: RobustnessDatasetRecipe, root: Path) -> bool:
    """Make a dataset below the data root if it is one of the suite's own and absent; return whether it was made now.

    Raises:
        UserError: if what it is made from is absent or cannot be decoded, or it cannot be written, or would lie elsewhere.
    """
    if toy := built_by(recipe):
        return toy.build(root)
    for other in (recipe.copy_of, recipe.known, recipe.path):  # images of the suite's own datasets
        for name in Path(other).parts[:1]:
            if name in BUILT:
                BUILT[name].build(root)
    if recipe.source != "corrupted":
        return False
    target = below(root, *(Path(recipe.path).parts or ("",)))
    beside = [target.parent, *(folder for folder in target.parent.glob("*/") if folder != target)]
    if target.parent != root and any(map(has_image, filter(Path.is_dir, beside))):
        raise UserError(
            f"{recipe.name}: path = {recipe.path!r} would write corrupted images into {target.parent}, which holds another dataset. Use "
            "a separate folder below the data root."
        )
    from robustness.corrupted import build_corrupted  # here, because scikit-image takes a second to import

    folder = root / recipe.copy_of
    first = next(iter(Path(recipe.copy_of).parts), folder.name)
    return build_corrupted(
        open_folder(folder, first, folder.name),
        target,
        copied_corruptions(recipe),
        recipe.severities,
        side=recipe.copy_side,
        per_class=recipe.copy_per_class,
        workers=os.cpu_count() or 1,
    )


def verify(known: KnownDataset, root: Path, full: bool, report: VerifyReport) -> tuple[dict[str, SplitMetadata], str]:
    """Check a known dataset below ``root``: every condition counted, and some of its images decoded, or all if ``full``.

    Return the metadata of each condition, and the fingerprint of all.
    """
    recipe = cast(RobustnessDatasetRecipe, known.recipe)
    folders = set(condition_folders(recipe, root).values())
    each = None if full else max(PER_CONDITION, SAMPLE // max(1, len(folders)))
    metadata: dict[str, SplitMetadata] = {}
    printed = time.monotonic()

    def visit(condition: str, images: FolderImages) -> None:
        """Check the files of one condition, and say now and then how far it is."""
        nonlocal printed
        found = IntegrityReport()
        metadata[condition] = metadata_of(images, scan_files(images, each, False, found))
        report.notes.extend(found.notes)
        report.problems.extend(found.problems)
        if (toy := built_by(recipe)) and condition != KNOWN:
            compare_built(toy.pixels["test"], images, full and not found.problems, report)
        if time.monotonic() - printed > LINE_EVERY:  # ImageNet-C has 75 conditions, of some seconds each
            printed = time.monotonic()
            count = metadata[condition].looked_at
            console.print(f"{known.name} {condition}: checked {count:,} of {len(images):,} images")

    listing = look_for(recipe, root, visit)
    if listing.state is DatasetState.ABSENT:
        report.problems.append(f"{' '.join(listing.problems)} How to get it: lutbench data list {known.name}")
        return {}, ""
    images, looked_at = sum(listing.images.values()), sum(one.looked_at for one in metadata.values())
    parts = f" in {len(listing.images):,} parts" if len(listing.images) > 1 else ""
    report.lines.append(
        f"{images:,} images{parts}, {len(listing.classes):,} classes, fingerprint {listing.fingerprint[:12]}"
    )
    broken = sum(one.undecodable for one in metadata.values())
    report.lines.append(f"{looked_at - broken:,} of {looked_at:,} images checked can be decoded")
    report.problems += listing.problems
    return metadata, listing.fingerprint
