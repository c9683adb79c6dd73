"""Whether a known set is whole: its counts, a sample of its images or all of them, and what is in both splits."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from lutbench.data.catalogue import any_set, splits_of
from lutbench.data.folder import FolderImages
from lutbench.data.images import ImageDataset, Split, check_pair, open_images
from lutbench.data.integrity import SAMPLE, Files, Scan, find_duplicates, look
from lutbench.data.known import BUILDERS, CATALOGUE, place
from lutbench.data.literature import KnownSet
from lutbench.data.manifest import NAMED, IntegrityReport, SplitFacts, keep_manifest, new_manifest
from lutbench.data.masks import inspect_masks
from lutbench.data.scene_sets import open_scenes
from lutbench.data.scenes import SegmentationDataset, check_scenes
from lutbench.data.toy.build import Buildable
from lutbench.data.toy.mosaics import MOSAICS, mosaic_pixels
from lutbench.data.toy.photographs import BUILT, check_pixels
from lutbench.data.walking import printable
from lutbench.errors import UserError, listed
from lutbench.progress import LINE_EVERY, console
from lutbench.recipes import DataRecipe, SegmentationDataRecipe
from robustness.published_sets import PublishedSet

FEWEST = 3
"""Classes with the fewest images that are named where images are missing."""

PER_CELL = 8
"""At least so many images of every part of a shifted set are looked at."""


@dataclass
class CheckReport(IntegrityReport):
    """What a check of a set found."""

    name: str = ""
    where: str = ""

    @property
    def exit_status(self) -> int:
        """0 if the set is whole, else 1."""
        return 1 if self.problems else 0


def check_set(name: str, root: Path, full: bool = False) -> CheckReport:
    """Count a set's classes and images, compare with what is expected, and decode some of them, or all if ``full``.

    Masks are checked with their images. What was found is kept below ``root`` (:mod:`lutbench.data.manifest`).

    Raises:
        UserError: if there is no known set of that name.
    """
    known = any_set(name)
    if isinstance(known, PublishedSet):
        return _check_shifted(known, root, full)
    report = CheckReport(name=name, where=str(place(known, root)))
    if name in BUILDERS and not place(known, root).exists():
        report.problems.append(f"Not built yet: lutbench data prepare {name}")
        return report
    opened: dict[Split, ImageDataset | SegmentationDataset] = {}
    for split in splits_of(known.recipe):
        try:
            opened[split] = _open(known, split, root)
        except UserError as error:
            if str(error) not in report.problems:
                report.problems.append(str(error))
    if not opened:
        report.problems.append(f"How to get it: lutbench data list {name}")
    _compare_counts(known, opened, report)
    looks = {split: _look(images, None if full else SAMPLE, full, report) for split, images in opened.items()}
    for split, images in opened.items():
        _check_more(images, looks[split], full, report)
    facts: dict[str, SplitFacts] = {split: _facts(images, looks[split]) for split, images in opened.items()}
    if len(opened) == 2 and not (isinstance(known.recipe, DataRecipe) and known.recipe.streaming):
        duplicates = find_duplicates(opened["train"], opened["val"], (looks["train"], looks["val"]))
        (report.notes if duplicates.pairs else report.lines).append(str(duplicates))
        facts["val"].duplicates = len(duplicates.pairs)
        facts["val"].duplicate_names = duplicates.pairs[:NAMED]
    _keep(report, facts, root)
    return report


def render_check(report: CheckReport) -> RenderableType:
    """What a check found, problems last."""
    last = "  not whole" if report.problems else "  whole, as far as was looked"
    lines = [
        (f"{report.name}: {report.where}", "bold"),
        *((f"  {line}", "") for line in report.lines),
        *((f"  note: {note}", "yellow") for note in report.notes),
        *((f"  problem: {problem}", "red") for problem in report.problems),
        (last, "bold"),
    ]
    return Group(*(Text(printable(text), style=style) for text, style in lines))


def _check_shifted(published: PublishedSet, root: Path, full: bool) -> CheckReport:
    from robustness.datasets import (  # timm, which takes seconds to import
        ChosenImages,
        DatasetState,
        condition_folders,
        look_for,
    )

    recipe = published.recipe
    report = CheckReport(name=published.name, where=str((root / recipe.folder).absolute()))
    each = None if full else max(PER_CELL, SAMPLE // max(1, len(set(condition_folders(recipe, root).values()))))
    facts: dict[str, SplitFacts] = {}
    told = time.monotonic()

    def visit(cell: str, images: FolderImages | ChosenImages) -> None:
        nonlocal told
        seen = IntegrityReport()
        facts[cell] = _facts(images, _look(images, each, False, seen))
        report.notes.extend(seen.notes)
        report.problems.extend(seen.problems)
        if time.monotonic() - told > LINE_EVERY:  # ImageNet-C has 75 parts, of some seconds each
            told = time.monotonic()
            console.print(f"{published.name} {cell}: looked at {facts[cell].looked_at:,} of {len(images):,} images")

    found = look_for(recipe, root, visit)
    if found.state is DatasetState.ABSENT:
        report.problems.append(f"{' '.join(found.problems)} How to get it: lutbench data list {published.name}")
        return report
    images, looked_at = sum(found.images.values()), sum(one.looked_at for one in facts.values())
    parts = f" in {len(found.images):,} parts" if len(found.images) > 1 else ""
    report.lines.append(
        f"{images:,} images{parts}, {len(found.classes):,} classes, fingerprint {found.fingerprint[:12]}"
    )
    broken = sum(one.undecodable for one in facts.values())
    report.lines.append(f"{looked_at - broken:,} of {looked_at:,} images looked at can be decoded")
    report.problems += found.problems
    _keep(report, facts, root, found.fingerprint)
    return report


def _keep(report: CheckReport, facts: dict[str, SplitFacts], root: Path, fingerprint: str = "") -> None:
    if not facts:
        return
    report.add(keep_manifest(new_manifest(report.name, facts, fingerprint), root))


def _facts(images: ImageDataset | SegmentationDataset, seen: Scan) -> SplitFacts:
    return SplitFacts(
        images=len(images),
        classes=len(images.classes),
        bytes=int(images.sizes.clip(0).sum()),
        fingerprint=images.fingerprint,
        looked_at=len(seen.indices) + len(seen.empty),
        undecodable=len(seen.undecodable),
        undecodable_names=seen.undecodable[:NAMED],
    )


def _open(known: KnownSet, split: Split, root: Path) -> ImageDataset | SegmentationDataset:
    if isinstance(known.recipe, SegmentationDataRecipe):
        return open_scenes(known.recipe, split, root)
    return open_images(known.recipe, split, root)


def _compare_counts(
    known: KnownSet, opened: Mapping[Split, ImageDataset | SegmentationDataset], report: CheckReport
) -> None:
    pinned: dict[str, Buildable] = {**BUILT, MOSAICS.name: MOSAICS}
    for split, images in opened.items():
        report.lines.append(
            f"{split}: {len(images):,} images, {len(images.classes):,} classes, fingerprint {images.fingerprint[:12]}"
        )
        _expect(f"{split}, classes", len(images.classes), known.classes, report)
        _expect_classes(known, images, report)
        if split in known.images:
            _expect(f"{split}, images", len(images), known.images[split], report, _fewest(images))
        if known.name in pinned and images.fingerprint != pinned[known.name].pixels[split]:
            report.notes.append(
                f"{split} has other pixels than the suite's published records: another decoder's version made it."
            )
    if "train" in opened and "val" in opened:
        if "all" in known.images:
            _expect("images in all", sum(map(len, opened.values())), known.images["all"], report)
        try:
            _check_pair(opened["train"], opened["val"])
        except UserError as error:
            report.problems.append(str(error))
        else:
            if opened["train"].fingerprint == opened["val"].fingerprint:
                report.problems.append("train and val are the same images.")
    _take_for_another(known, opened, report)


def _take_for_another(
    known: KnownSet, opened: Mapping[Split, ImageDataset | SegmentationDataset], report: CheckReport
) -> None:
    """Say so if the counts are the expected ones the other way round, or those of another known set."""
    found = {split: len(images) for split, images in opened.items()}
    expected = {split: known.images[split] for split in ("train", "val") if split in known.images}
    if not found or _counts_are(known, found):
        return
    if len(expected) == 2 and found == {"train": expected["val"], "val": expected["train"]}:
        report.problems.append(
            "train and val are swapped: each has the other's number of images. Exchange their folders or lists."
        )
    classes = {len(images.classes) for images in opened.values()}
    like = [other.name for other in CATALOGUE.values() if classes == {other.classes} and _counts_are(other, found)]
    if like:
        report.problems.append(
            f"These are the numbers of {' or '.join(like)}, not of {known.name}: is it that set that lies in {report.where}?"
        )


def _counts_are(known: KnownSet, found: Mapping[Split, int]) -> bool:
    if "all" in known.images:
        return len(found) == 2 and sum(found.values()) == known.images["all"]
    return all(known.images.get(split) == count for split, count in found.items())


def _check_pair(train: ImageDataset | SegmentationDataset, val: ImageDataset | SegmentationDataset) -> None:
    if isinstance(train, SegmentationDataset) and isinstance(val, SegmentationDataset):
        check_scenes(train, val)
    elif not isinstance(train, SegmentationDataset) and not isinstance(val, SegmentationDataset):
        check_pair(train, val)


def _expect(what: str, found: int, expected: int, report: IntegrityReport, more: str = "") -> None:
    if found != expected:
        report.problems.append(f"{what}: expected {expected:,}, found {found:,} ({found - expected:+,}).{more}")


def _expect_classes(known: KnownSet, images: ImageDataset | SegmentationDataset, report: IntegrityReport) -> None:
    """Compare the class folders' names, of sets of which they are known."""
    if known.name != "imagenet-1k":
        return
    from robustness.labels import imagenet_1k  # timm, which takes seconds to import

    here, expected = set(images.classes), set(imagenet_1k().names)
    if missing := sorted(expected - here):
        report.problems.append(f"{images.split}, missing classes: {listed(missing)}.")
    if others := sorted(here - expected):
        report.problems.append(f"{images.split}, folders that are no class of {known.name}: {listed(others)}.")


def _fewest(images: ImageDataset | SegmentationDataset) -> str:
    """Where to look first for images that are missing: a class that was unpacked in part stands out."""
    if isinstance(images, SegmentationDataset) or images.labels is None:
        return ""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    fewest = np.argsort(counts, kind="stable")[:FEWEST].tolist()
    return f" The classes with the fewest: {', '.join(f'{images.classes[one]} ({counts[one]:,})' for one in fewest)}."


def _look(files: Files, count: int | None, digests: bool, report: IntegrityReport) -> Scan:
    """Decode images, and report on them."""
    seen = look(files, count, digests)
    split = files.split
    looked_at = len(seen.indices) + len(seen.empty)
    report.lines.append(
        f"{split}: {looked_at - len(seen.undecodable):,} of {looked_at:,} images looked at can be decoded"
    )
    if seen.broken:
        report.problems.append(f"{split}: {len(seen.broken):,} images cannot be decoded: {listed(seen.broken)}.")
    if seen.empty:
        report.problems.append(f"{split}: {len(seen.empty):,} files are empty: {listed(seen.empty)}.")
    report.notes += [
        f"{split}: {len(names):,} images are {kind}, and become RGB when read: {listed(names, 3)}."
        for kind, names in sorted(seen.unusual.items())
    ]
    return seen


def _check_more(images: ImageDataset | SegmentationDataset, seen: Scan, full: bool, report: CheckReport) -> None:
    """Masks, and the pixels of sets that are built here."""
    problems: list[str] = []
    if isinstance(images, SegmentationDataset):
        masks = inspect_masks(images, seen.indices.tolist())
        if masks.faults:
            problems.append(masks.problem)
        else:
            report.lines.append(
                f"{images.split}: {len(seen.indices):,} masks looked at fit their images and the classes"
            )
            if full and masks.absent:
                report.notes.append(f"{images.split}: no mask has a pixel of {listed(masks.absent)}.")
    if full and not problems and not seen.undecodable and _pixels_of_built(images) not in (None, images.fingerprint):
        problems.append(
            f"{images.split}: pixels are not those that were written. Remove {report.where}; it is built anew when next used."
        )
    report.problems += problems


def _pixels_of_built(images: ImageDataset | SegmentationDataset) -> str | None:
    """The checksum of what can be decoded; of sets that are built here alone."""
    if isinstance(images, SegmentationDataset):
        return mosaic_pixels(images) if images.name == MOSAICS.name else None
    return check_pixels(images) if isinstance(images, FolderImages) and images.name in BUILT else None
