"""Check that a known dataset is complete: counts, decoding of some or all images, and duplicates between splits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from lutbench.data.catalogue import CATALOGUE, KnownDataset, find, location
from lutbench.data.images import Files
from lutbench.data.integrity import CUT, SAMPLE, Scan, find_duplicates, scan
from lutbench.data.manifest import NAMED, IntegrityReport, SplitMetadata, keep_manifest
from lutbench.data.toy.build import check_pixels
from lutbench.data.walking import printable
from lutbench.errors import UserError, listed
from lutbench.kinds import dataset_module

FEWEST = 3
"""Number of classes with the fewest images to list if images are missing."""


@dataclass
class VerifyReport(IntegrityReport):
    """Findings of a dataset check."""

    name: str = ""
    path: str = ""

    @property
    def exit_status(self) -> int:
        """0 if the dataset is complete, else 1."""
        return 1 if self.problems else 0


def verify(name: str, root: Path, full: bool = False) -> VerifyReport:
    """Count a dataset's classes and images, compare with the published numbers, and decode some images, or all if ``full``.

    Masks are checked together with their images. The findings are stored below ``root`` (:mod:`lutbench.data.manifest`).

    Raises:
        UserError: if there is no known dataset of that name.
    """
    known = find(name)
    report = VerifyReport(name=name, path=str(location(known, root)))
    if known.built and not location(known, root).exists():
        report.problems.append(f"Not built yet: lutbench data prepare {name}")
        return report
    own = getattr(dataset_module(known.recipe), "verify", _verify_splits)
    metadata, fingerprint = own(known, root, full, report)
    if metadata:
        keep_manifest(name, metadata, fingerprint, root, report)
    return report


def render_report(report: VerifyReport) -> RenderableType:
    """Return the findings of a check, ready to print, problems last."""
    last = "  incomplete or damaged" if report.problems else "  complete, as far as checked"
    lines = [
        (f"{report.name}: {report.path}", "bold"),
        *((f"  {line}", "") for line in report.lines),
        *((f"  note: {note}", "yellow") for note in report.notes),
        *((f"  problem: {problem}", "red") for problem in report.problems),
        (last, "bold"),
    ]
    return Group(*(Text(printable(text), style=style) for text, style in lines))


def _verify_splits(
    known: KnownDataset, root: Path, full: bool, report: VerifyReport
) -> tuple[dict[str, SplitMetadata], str]:
    """Check a dataset with a training and a validation split; return the metadata of each."""
    module = dataset_module(known.recipe)
    toy = module.built_by(known.recipe)
    opened: dict[str, Any] = {}
    for split in known.recipe.splits:
        try:
            opened[split] = module.open_dataset(known.recipe, split, root)
        except UserError as error:
            if str(error) not in report.problems:
                report.problems.append(str(error))
    if not opened:
        report.problems.append(f"How to get it: lutbench data list {known.name}")
    _compare_counts(known, opened, report)
    scans = {split: scan_files(dataset, None if full else SAMPLE, full, report) for split, dataset in opened.items()}
    for split, dataset in opened.items():
        if hasattr(module, "inspect"):
            module.inspect(dataset, scans[split], full, report)
        if toy:
            compare_built(toy.pixels[split], dataset, full and not scans[split].undecodable, report)
    metadata = {split: metadata_of(dataset, scans[split]) for split, dataset in opened.items()}
    if {*opened} == {"train", "val"} and not getattr(known.recipe, "streaming", False):
        duplicates = find_duplicates(opened["train"], opened["val"], (scans["train"], scans["val"]))
        (report.notes if duplicates.pairs else report.lines).append(str(duplicates))
        metadata["val"].duplicates = len(duplicates.pairs)
        metadata["val"].duplicate_names = duplicates.pairs[:NAMED]
    return metadata, ""


def scan_files(files: Files, count: int | None, digests: bool, report: IntegrityReport) -> Scan:
    """Decode ``count`` images of a split, or all, and report on them."""
    found = scan(files, count, digests)
    split = files.split
    total = len(found.indices) + len(found.empty)
    report.lines.append(f"{split}: {total - len(found.undecodable):,} of {total:,} images checked can be decoded")
    if found.broken:
        report.problems.append(f"{split}: {len(found.broken):,} images cannot be decoded: {listed(found.broken)}.")
    if found.empty:
        report.problems.append(f"{split}: {len(found.empty):,} files are empty: {listed(found.empty)}.")
    report.notes += [
        f"{split}: {len(names):,} images are {kind}; they are converted to RGB: {listed(names, 3)}."
        for kind, names in sorted(found.unusual.items())
        if kind != CUT
    ]
    if cut := found.unusual.get(CUT):
        report.problems.append(
            f"{split}: {len(cut):,} image files are truncated; the missing part is black or grey: {listed(cut)}."
        )
    return found


def metadata_of(dataset: Any, found: Scan) -> SplitMetadata:
    """Return the metadata of a split for the manifest."""
    return SplitMetadata(
        images=len(dataset),
        classes=len(dataset.classes),
        bytes=int(dataset.sizes.clip(0).sum()),
        fingerprint=dataset.fingerprint,
        looked_at=len(found.indices) + len(found.empty),
        undecodable=len(found.undecodable),
        undecodable_names=found.undecodable[:NAMED],
    )


def compare_built(pinned: str, dataset: Any, full: bool, report: VerifyReport) -> None:
    """Compare a built split with the ``pinned`` checksum of its pixels; if ``full``, also verify the pixels on disk."""
    if dataset.fingerprint != pinned:
        report.notes.append(
            f"{dataset.split} has other pixels than in the suite's published records: it was made with another version of the image decoder."
        )
    if full and check_pixels(dataset) != dataset.fingerprint:
        report.problems.append(
            f"{dataset.split}: pixels changed since they were written. Remove {report.path}; it is built again on next use."
        )


def _compare_counts(known: KnownDataset, opened: Mapping[str, Any], report: VerifyReport) -> None:
    module = dataset_module(known.recipe)
    for split, dataset in opened.items():
        classes = f"{len(dataset.classes):,} classes, " if known.classes else ""
        report.lines.append(f"{split}: {len(dataset):,} images, {classes}fingerprint {dataset.fingerprint[:12]}")
        _expect(f"{split}, classes", len(dataset.classes), known.classes, report)
        _expect_class_names(known, dataset, report)
        if split in known.images:
            _expect(f"{split}, images", len(dataset), known.images[split], report, _fewest(dataset))
    if "train" in opened and "val" in opened:
        if "all" in known.images:
            _expect("images in all", sum(map(len, opened.values())), known.images["all"], report)
        try:
            module.check_pair(opened["train"], opened["val"])
        except UserError as error:
            report.problems.append(str(error))
        else:
            if opened["train"].fingerprint == opened["val"].fingerprint:
                report.problems.append("train and val are the same images.")
    _take_for_another(known, opened, report)


def _take_for_another(known: KnownDataset, opened: Mapping[str, Any], report: VerifyReport) -> None:
    """Report if the counts of train and val are swapped, or are those of another known dataset."""
    found = {split: len(dataset) for split, dataset in opened.items()}
    expected = {split: known.images[split] for split in ("train", "val") if split in known.images}
    if not found or _counts_are(known, found):
        return
    if len(expected) == 2 and found == {"train": expected["val"], "val": expected["train"]}:
        report.problems.append(
            "train and val are probably swapped: each has the other's number of images. Exchange their folders or lists."
        )
    classes = {len(dataset.classes) for dataset in opened.values()}
    like = [other.name for other in CATALOGUE.values() if classes == {other.classes} and _counts_are(other, found)]
    if like:
        report.problems.append(
            f"These numbers are those of {' or '.join(like)}, not of {known.name}: is {report.path} that dataset?"
        )


def _counts_are(known: KnownDataset, found: Mapping[str, int]) -> bool:
    if "all" in known.images:
        return len(found) == 2 and sum(found.values()) == known.images["all"]
    return all(known.images.get(split) == count for split, count in found.items())


def _expect(what: str, found: int, expected: int, report: IntegrityReport, more: str = "") -> None:
    if found != expected:
        report.problems.append(f"{what}: expected {expected:,}, found {found:,} ({found - expected:+,}).{more}")


def _expect_class_names(known: KnownDataset, dataset: Any, report: IntegrityReport) -> None:
    """Compare the names of class folders, for datasets whose names are known."""
    if known.name != "imagenet-1k":
        return
    from timm.data import ImageNetInfo  # here, because timm takes seconds to import

    present, expected = set(dataset.classes), set(ImageNetInfo().label_names())
    if missing := sorted(expected - present):
        report.problems.append(f"{dataset.split}, missing classes: {listed(missing)}.")
    if others := sorted(present - expected):
        report.problems.append(f"{dataset.split}, folders that are not classes of {known.name}: {listed(others)}.")


def _fewest(dataset: Any) -> str:
    """Return a sentence with the smallest classes: if images are missing, an incompletely unpacked class stands out."""
    labels = getattr(dataset, "labels", None)
    if labels is None:
        return ""
    counts = np.bincount(labels, minlength=len(dataset.classes))
    fewest = np.argsort(counts, kind="stable")[:FEWEST].tolist()
    return f" Smallest classes: {', '.join(f'{dataset.classes[one]} ({counts[one]:,})' for one in fewest)}."
