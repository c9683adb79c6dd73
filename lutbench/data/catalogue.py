"""The image sets that the suite knows: whether they are there and whole, and how to get them."""

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

from lutbench.data.folder import FolderImages
from lutbench.data.images import ImageSet, Split, UndecodableImage, check_pair, open_images
from lutbench.data.photographs import BUILT, build, check_pixels
from lutbench.data.progress import tracked
from lutbench.errors import UserError, listed, nearest
from lutbench.recipes import DataRecipe

SAMPLE = 256
"""Images of each split, evenly spaced, that a check without ``full`` decodes."""

SPLITS: tuple[Split, Split] = ("train", "val")


@dataclass(frozen=True)
class KnownSet:
    """A set as its authors describe it."""

    name: str
    title: str
    recipe: DataRecipe
    """How a suite file opens it."""
    classes: int
    images: dict[str, int]
    """Of each split; under ``all`` the sum, for a set that has no fixed split."""
    get: str
    """What to do to have it, step by step; ``DIR`` stands for the set's folder."""
    terms: str


def _built(name: str, title: str) -> KnownSet:
    cut = BUILT[name]
    return KnownSet(
        name=name,
        title=title,
        recipe=DataRecipe(label=name, source=name),
        classes=len(cut.classes),
        images={split: len(cut.classes) * count for split, count in cut.counts.items()},
        get="Built in seconds when it is first used, from photographs that ship in scikit-image and scikit-learn.",
        terms="the photographs' own; see skimage/data and sklearn/datasets/images in the installed packages",
    )


CATALOGUE = {
    known.name: known
    for known in (
        _built("photographs", "Crops of 19 photographs"),
        _built("photograph-tiles", "Crops of the quarters of six photographs"),
        KnownSet(
            name="imagenet-1k",
            title="ImageNet-1K (ILSVRC 2012 classification)",
            recipe=DataRecipe(label="imagenet-1k", path="imagenet-1k"),
            classes=1000,
            images={"train": 1_281_167, "val": 50_000},
            get=(
                "1. Register at https://image-net.org/download and download ILSVRC2012_img_train.tar (138 GB), "
                "ILSVRC2012_img_val.tar (6 GB) and ILSVRC2012_devkit_t12.tar.gz into DIR.\n"
                "2. Unpack them into class folders, DIR/train/n01440764/*.JPEG and DIR/val/n01440764/*.JPEG:\n"
                "   python -c \"from torchvision.datasets import ImageNet; [ImageNet('DIR', split) for split in ('train', 'val')]\""
            ),
            terms="non-commercial research and education, by ImageNet's terms of access",
        ),
        KnownSet(
            name="caltech101",
            title="Caltech-101, without background and the doubled faces",
            recipe=DataRecipe(label="caltech101", path="caltech101"),
            classes=100,
            images={"all": 8_242},
            get=(
                "1. Download caltech-101.zip (137 MB) from https://data.caltech.edu/records/mzrjq-6wc02 and unpack it and the "
                "101_ObjectCategories.tar.gz in it.\n"
                "2. Remove the folders BACKGROUND_Google and Faces_easy (the photographs of Faces again, cropped).\n"
                "3. There is no official split. Put about four fifths of each class into DIR/train/CLASS and the rest into "
                "DIR/val/CLASS; compare only scores on one and the same split."
            ),
            terms="CC BY 4.0",
        ),
        KnownSet(
            name="flowers17",
            title="Oxford Flowers-17",
            recipe=DataRecipe(label="flowers17", path="flowers17"),
            classes=17,
            images={"train": 1_020, "val": 340},
            get=(
                "1. Download 17flowers.tgz (58 MB) from https://www.robots.ox.ac.uk/~vgg/data/flowers/17/ and unpack it: 1,360 "
                "images in order of class, 80 of each.\n"
                "2. Images 1 to 80 are class c1, 81 to 160 c2, and so on to c17. Put those whose number divides by four into "
                "DIR/val/CLASS and the others into DIR/train/CLASS (our split: the official ones need Matlab files)."
            ),
            terms="research; photographs from the web, rights with their owners",
        ),
        KnownSet(
            name="cifar-100",
            title="CIFAR-100",
            recipe=DataRecipe(
                label="cifar-100",
                source="huggingface",
                path="uoft-cs/cifar100",
                val="test",
                image_column="img",
                label_column="fine_label",
            ),
            classes=100,
            images={"train": 50_000, "val": 10_000},
            get=(
                "Downloaded from the Hugging Face Hub (119 MB) when it is first used. For a machine without a network, on one "
                "that has it:\n"
                "   python -c \"from datasets import load_dataset; load_dataset('uoft-cs/cifar100').save_to_disk('DIR')\""
            ),
            terms="none stated by its authors; cite Krizhevsky 2009",
        ),
    )
}
"""The known sets, by name."""


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


def known_set(name: str) -> KnownSet:
    """A set by name.

    Raises:
        UserError: with the nearest name, if there is none.
    """
    if name not in CATALOGUE:
        raise UserError(f"There is no known set {name!r}.{nearest(name, CATALOGUE)} Known: {', '.join(CATALOGUE)}.")
    return CATALOGUE[name]


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

    Raises:
        UserError: if there is no known set of that name.
    """
    known = known_set(name)
    report = CheckReport(name, str(place(known, root)))
    if known.recipe.source in BUILT and not place(known, root).exists():
        report.problems.append(f"Not built yet: lutbench data prepare {name}")
        return report
    opened: dict[str, ImageSet] = {}
    for split in SPLITS:
        try:
            opened[split] = open_images(known.recipe, split, root)
        except UserError as error:
            report.problems.append(str(error))
    _compare_counts(known, opened, report)
    for images in opened.values():
        _decode(images, full, report)
    return report


def prepare_set(name: str, root: Path) -> Prepared:
    """Build a set that the suite can build; say of any other whether it is there, and how to get it if not.

    Raises:
        UserError: if there is no known set of that name, or it cannot be built.
    """
    known = known_set(name)
    where = place(known, root)
    if name in BUILT:
        new = build(name, root)
        return Prepared(True, f"{name} {'was built' if new else 'is there already'}: {where}")
    state = _state(known, root)
    if state == "here":
        return Prepared(True, f"{name} is there: {where}\nWhether it is whole: lutbench data check {name}")
    return Prepared(
        False,
        f"{name} is not complete at {where} ({state}). How to get it:\n{how_to_get(known, root)}\nTerms: {known.terms}.",
    )


def place(known: KnownSet, root: Path) -> Path:
    """Where the set lies, or would lie."""
    return (root / (known.name if known.recipe.source in BUILT else known.recipe.path)).absolute()


def how_to_get(known: KnownSet, root: Path) -> str:
    """The steps to have a set, with the folder filled in."""
    return known.get.replace("DIR", str(place(known, root)))


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
    if known.name in BUILT and not where.exists():
        return "built on first use"
    missing = [split for split in (known.recipe.train, known.recipe.val) if not (where / split).is_dir()]
    return "missing" if len(missing) == 2 else f"{missing[0]} is missing" if missing else "here"


def _compare_counts(known: KnownSet, opened: dict[str, ImageSet], report: CheckReport) -> None:
    for split, images in opened.items():
        report.lines.append(
            f"{split}: {len(images):,} images, {len(images.classes):,} classes, fingerprint {images.fingerprint[:12]}"
        )
        _expect(f"{split}, classes", len(images.classes), known.classes, report)
        if split in known.images:
            _expect(f"{split}, images", len(images), known.images[split], report)
        if known.name in BUILT and images.fingerprint != BUILT[known.name].pixels[split]:
            report.notes.append(
                f"{split} has other pixels than the suite's published records: another decoder's version made it."
            )
    if len(opened) == len(SPLITS):
        if "all" in known.images:
            _expect("images in all", sum(map(len, opened.values())), known.images["all"], report)
        try:
            check_pair(opened["train"], opened["val"])
        except UserError as error:
            report.problems.append(str(error))


def _expect(what: str, found: int, expected: int, report: CheckReport) -> None:
    if found != expected:
        report.problems.append(f"{what}: expected {expected:,}, found {found:,} ({found - expected:+,}).")


def _decode(images: ImageSet, full: bool, report: CheckReport) -> None:
    count = len(images) if full else min(SAMPLE, len(images))
    indices = np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64)).tolist()
    broken = [problem for problem in _attempts(images, indices) if problem]
    report.lines.append(
        f"{images.split}: {len(indices) - len(broken):,} of {len(indices):,} images looked at can be decoded"
    )
    if broken:
        report.problems.append(f"{images.split}: {len(broken)} images cannot be decoded: {listed(broken)}.")
    elif (
        full
        and isinstance(images, FolderImages)
        and images.name in BUILT
        and check_pixels(images) != images.fingerprint
    ):
        report.problems.append(
            f"{images.split}: pixels are not those that were written. Remove {report.where}; it is built anew when next used."
        )


def _attempts(images: ImageSet, indices: list[int], at_once: int = 1024) -> Iterator[str]:
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
