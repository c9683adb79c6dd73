"""Whether the image sets that the suite knows are there and whole."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub.constants import HF_HOME
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lutbench.data.building import Buildable
from lutbench.data.folder import FolderImages
from lutbench.data.images import ImageSet, Split, UndecodableImage, check_pair, open_images
from lutbench.data.known import BUILDERS, CATALOGUE, KnownSet, how_to_get, known_set, place
from lutbench.data.masks import inspect_masks
from lutbench.data.mosaics import MOSAICS, mosaic_pixels
from lutbench.data.photographs import BUILT, check_pixels
from lutbench.data.progress import tracked
from lutbench.data.scenes import Scenes, check_scenes, open_scenes
from lutbench.errors import UserError, listed
from lutbench.recipes import ScenesRecipe

SAMPLE = 256
"""Images of each split, evenly spaced, that a check without ``full`` decodes."""

SPLITS: tuple[Split, Split] = ("train", "val")


@dataclass(frozen=True)
class SetStatus:
    """Whether a known set is there, as far as a glance tells."""

    known: KnownSet
    state: str
    """``here``, ``built on first use``, ``on the Hub``, ``missing``, or what of it is missing."""
    where: str


@dataclass
class CheckReport:
    """What a check found."""

    name: str
    where: str
    lines: list[str] = field(default_factory=list)
    """What was seen."""
    notes: list[str] = field(default_factory=list)
    """What is unusual and no fault."""
    problems: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 if the set is whole, else 1."""
        return 1 if self.problems else 0


@dataclass(frozen=True)
class Prepared:
    """What came of preparing a set."""

    there: bool
    """Whether it can be used now; if not, ``text`` says how to get it."""
    text: str


def list_sets(root: Path) -> list[SetStatus]:
    """Every known set and whether it is below ``root``. Looks at folders only, so it is instant."""
    return [SetStatus(known, _state(known, root), str(place(known, root))) for known in CATALOGUE.values()]


def sets_here(root: Path) -> list[str]:
    """Names of the known sets that are below ``root``, whole or in part.

    Raises:
        UserError: if none is.
    """
    names = [known.name for known in CATALOGUE.values() if place(known, root).exists()]
    if not names:
        raise UserError(
            f"None of the known sets is below {root.absolute()}: point --data-root at the folder that holds them. "
            "`lutbench data list` says what they are and how to get them."
        )
    return names


def check_set(name: str, root: Path, full: bool = False) -> CheckReport:
    """Count a set's classes and images, compare with what is expected, and decode some of them, or all if ``full``.

    Masks are checked with their images.

    Raises:
        UserError: if there is no known set of that name.
    """
    known = known_set(name)
    report = CheckReport(name, str(place(known, root)))
    if name in BUILDERS and not place(known, root).exists():
        report.problems.append(f"Not built yet: lutbench data prepare {name}")
        return report
    opened: dict[Split, ImageSet | Scenes] = {}
    for split in SPLITS:
        try:
            opened[split] = _open(known, split, root)
        except UserError as error:
            report.problems.append(str(error))
    _compare_counts(known, opened, report)
    for images in opened.values():
        _look(images, full, report)
    return report


def prepare_set(name: str, root: Path) -> Prepared:
    """Build a set that the suite can build; say of any other whether it is there, and how to get it if not.

    Raises:
        UserError: if there is no known set of that name, or it cannot be built.
    """
    known = known_set(name)
    where = place(known, root)
    if name in BUILDERS:
        new = BUILDERS[name](root)
        return Prepared(True, f"{name} {'was built' if new else 'is there already'}: {where}")
    state = _state(known, root)
    if state == "here":
        return Prepared(True, f"{name} is there: {where}\nWhether it is whole: lutbench data check {name}")
    return Prepared(
        False,
        f"{name} is not complete at {where} ({state}). How to get it:\n{how_to_get(known, root)}\nTerms: {known.terms}.",
    )


def render_list(statuses: list[SetStatus], root: Path) -> RenderableType:
    """The sets as a table, and below it what each is and how to get those that are not there."""
    table = Table(title=f"Image sets below {root.absolute()}", title_justify="left", box=None, pad_edge=False)
    for column in ("set", "classes", "train", "val", "state"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("classes", *SPLITS) else "left")
    rest: list[RenderableType] = []
    for status in statuses:
        known = status.known
        counts = [f"{known.images[split]:,}" if split in known.images else "" for split in SPLITS]
        if "all" in known.images:
            counts[0] = f"{known.images['all']:,} in all"
        table.add_row(known.name, f"{known.classes:,}", *counts, status.state)
        told = [] if status.state == "here" else [*how_to_get(known, root).splitlines(), f"Terms: {known.terms}."]
        rest.append(Text(f"\n{known.name}: {known.title}"))
        for line in told:
            command = line.startswith(" ")  # to be copied, so never broken; the rest is prose
            rest.append(Text(f"  {line}") if command else Padding.indent(Text(line, no_wrap=False, overflow="fold"), 2))
    return Group(table, *rest)


def render_check(report: CheckReport) -> RenderableType:
    """What a check found, problems last."""
    lines = [Text(f"{report.name}: {report.where}", style="bold")]
    lines += [Text(f"  {line}") for line in report.lines]
    lines += [Text(f"  note: {note}", style="yellow") for note in report.notes]
    lines += [Text(f"  problem: {problem}", style="red") for problem in report.problems]
    lines.append(Text("  not whole" if report.problems else "  whole, as far as was looked", style="bold"))
    return Group(*lines)


def _state(known: KnownSet, root: Path) -> str:
    where = place(known, root)
    if known.recipe.source == "huggingface":
        cached = Path(os.environ.get("HF_DATASETS_CACHE", f"{HF_HOME}/datasets")) / known.recipe.path.replace(
            "/", "___"
        )
        return "here" if where.exists() or cached.exists() else "on the Hub"
    if known.name in BUILDERS and not where.exists():
        return "built on first use"
    kinds = ("images/", "annotations/") if isinstance(known.recipe, ScenesRecipe) else ("",)
    folders = [kind + split for split in (known.recipe.train, known.recipe.val) for kind in kinds]
    missing = [folder for folder in folders if not (where / folder).is_dir()]
    return "missing" if missing == folders else f"{missing[0]} is missing" if missing else "here"


def _open(known: KnownSet, split: Split, root: Path) -> ImageSet | Scenes:
    if isinstance(known.recipe, ScenesRecipe):
        return open_scenes(known.recipe, split, root)
    return open_images(known.recipe, split, root)


def _compare_counts(known: KnownSet, opened: dict[Split, ImageSet | Scenes], report: CheckReport) -> None:
    pinned: dict[str, Buildable] = {**BUILT, MOSAICS.name: MOSAICS}
    for split, images in opened.items():
        report.lines.append(
            f"{split}: {len(images):,} images, {len(images.classes):,} classes, fingerprint {images.fingerprint[:12]}"
        )
        _expect(f"{split}, classes", len(images.classes), known.classes, report)
        if split in known.images:
            _expect(f"{split}, images", len(images), known.images[split], report)
        if known.name in pinned and images.fingerprint != pinned[known.name].pixels[split]:
            report.notes.append(
                f"{split} has other pixels than the suite's published records: another decoder's version made it."
            )
    if len(opened) == len(SPLITS):
        if "all" in known.images:
            _expect("images in all", sum(map(len, opened.values())), known.images["all"], report)
        try:
            _check_pair(opened["train"], opened["val"])
        except UserError as error:
            report.problems.append(str(error))


def _check_pair(train: ImageSet | Scenes, val: ImageSet | Scenes) -> None:
    if isinstance(train, Scenes) and isinstance(val, Scenes):
        check_scenes(train, val)
    elif not isinstance(train, Scenes) and not isinstance(val, Scenes):
        check_pair(train, val)


def _expect(what: str, found: int, expected: int, report: CheckReport) -> None:
    if found != expected:
        report.problems.append(f"{what}: expected {expected:,}, found {found:,} ({found - expected:+,}).")


def _look(images: ImageSet | Scenes, full: bool, report: CheckReport) -> None:
    """Decode images and masks."""
    count = len(images) if full else min(SAMPLE, len(images))
    indices = np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64)).tolist()
    broken = [problem for problem in _attempts(images, indices) if problem]
    report.lines.append(
        f"{images.split}: {len(indices) - len(broken):,} of {len(indices):,} images looked at can be decoded"
    )
    problems = [f"{images.split}: {len(broken)} images cannot be decoded: {listed(broken)}."] if broken else []
    if isinstance(images, Scenes):
        masks = inspect_masks(images, indices)
        if masks.faults:
            problems.append(masks.problem)
        else:
            report.lines.append(f"{images.split}: {len(indices):,} masks looked at fit their images and the classes")
            if full and masks.absent:
                report.notes.append(f"{images.split}: no mask has a pixel of {listed(masks.absent)}.")
    if full and not problems and _pixels_of_built(images) not in (None, images.fingerprint):
        problems.append(
            f"{images.split}: pixels are not those that were written. Remove {report.where}; it is built anew when next used."
        )
    report.problems += problems


def _pixels_of_built(images: ImageSet | Scenes) -> str | None:
    """The checksum of what can be decoded; of sets that are built here alone."""
    if isinstance(images, Scenes):
        return mosaic_pixels(images) if images.name == MOSAICS.name else None
    return check_pixels(images) if isinstance(images, FolderImages) and images.name in BUILT else None


def _attempts(images: ImageSet | Scenes, indices: list[int], at_once: int = 1024) -> Iterator[str]:
    """For every image nothing, or its name if it cannot be decoded; by threads, since Pillow decodes in parallel."""

    def attempt(index: int) -> str:
        try:
            images.image(index)
        except UndecodableImage:
            return images.image_name(index)
        return ""

    def attempts() -> Iterator[str]:
        with ThreadPoolExecutor() as threads:
            for first in range(0, len(indices), at_once):
                yield from threads.map(attempt, indices[first : first + at_once])

    return tracked(attempts(), len(indices), f"decoding {images.name} {images.split}")
