"""Whether a known robustness dataset is whole: every condition counted, and some of its images decoded, or all."""

import time
from pathlib import Path
from typing import cast

from lutbench.data.catalogue import KnownDataset
from lutbench.data.folder import FolderImages
from lutbench.data.integrity import SAMPLE
from lutbench.data.manifest import IntegrityReport, SplitMetadata
from lutbench.data.verify import VerifyReport, metadata_of, scan_files
from lutbench.progress import LINE_EVERY, console
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.datasets import ChosenImages, DatasetState, condition_folders, look_for

PER_CONDITION = 8
"""At least so many images of every condition are decoded."""


def verify(known: KnownDataset, root: Path, full: bool, report: VerifyReport) -> tuple[dict[str, SplitMetadata], str]:
    """Check the dataset below ``root``; return the metadata of each condition, and the fingerprint of all."""
    recipe = cast(RobustnessDatasetRecipe, known.recipe)
    folders = set(condition_folders(recipe, root).values())
    each = None if full else max(PER_CONDITION, SAMPLE // max(1, len(folders)))
    metadata: dict[str, SplitMetadata] = {}
    printed = time.monotonic()

    def visit(condition: str, images: FolderImages | ChosenImages) -> None:
        """Check the files of one condition, and say now and then how far it is."""
        nonlocal printed
        found = IntegrityReport()
        metadata[condition] = metadata_of(images, scan_files(images, each, False, found))
        report.notes.extend(found.notes)
        report.problems.extend(found.problems)
        if time.monotonic() - printed > LINE_EVERY:  # ImageNet-C has 75 conditions, of some seconds each
            printed = time.monotonic()
            count = metadata[condition].looked_at
            console.print(f"{known.name} {condition}: looked at {count:,} of {len(images):,} images")

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
    report.lines.append(f"{looked_at - broken:,} of {looked_at:,} images looked at can be decoded")
    report.problems += listing.problems
    return metadata, listing.fingerprint
