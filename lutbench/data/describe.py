"""The known sets as a table, and everything about one of them."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lutbench.data.catalogue import HERE, AnySet, DatasetStatus, how_to_get
from lutbench.data.literature import KnownSet
from lutbench.recipes import DataRecipe
from lutbench.recipes.loading import SUITES
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.published_sets import PublishedSet

SPLITS = ("train", "val")


def render_list(statuses: list[DatasetStatus], root: Path) -> RenderableType:
    """The sets as two tables, those to train on and the shifted ones."""
    sets = _table(("set", "classes", *SPLITS, "metric", "state"), f"Image sets below {root.absolute()}")
    shifted = _table(("shifted set", "classes", "images", "metric", "state"))
    for status in statuses:
        if isinstance(status.known, PublishedSet):
            recipe = status.known.recipe
            classes = "" if recipe.classes is None else f"{recipe.classes:,}"
            shifted.add_row(status.known.name, classes, _shifted_images(recipe), _shifted_metric(recipe), status.state)
        else:
            known = status.known
            counts = [f"{known.images[split]:,}" if split in known.images else "" for split in SPLITS]
            if "all" in known.images:
                counts = [f"{known.images['all']:,}", "in all"]
            sets.add_row(known.name, f"{known.classes:,}", *counts, _metric(known), status.state)
    return Group(sets, Text(), shifted, Text("\nOne set, and how to get it: lutbench data list NAME"))


def render_set(status: DatasetStatus) -> RenderableType:
    """Everything that is known of a set."""
    known = status.known
    facts = _shifted_facts(known) if isinstance(known, PublishedSet) else _facts(known)
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in [*facts, ("folder", str(status.where)), ("state", status.state)]:
        if value:
            grid.add_row(name, value)
    steps: list[RenderableType] = []
    for line in how_to_get(status).splitlines():
        command = line.startswith(" ")  # to be copied, so never broken; the rest is prose
        steps.append(Text(f"  {line}") if command else Padding.indent(Text(line, no_wrap=False, overflow="fold"), 2))
    then = [] if status.state != HERE else [Text(f"\nWhether it is whole: lutbench data check {known.name}")]
    title = Text(f"{known.name}: {known.title}\n", style="bold", no_wrap=False, overflow="fold")
    return Group(title, grid, Text("\nHow to get it"), *steps, *then)


def _table(columns: tuple[str, ...], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        right = column in ("classes", "images", *SPLITS)
        table.add_column(column, no_wrap=column != "state", overflow="fold", justify="right" if right else "left")
    return table


def _facts(known: KnownSet) -> list[tuple[str, str]]:
    images = {("in all" if split == "all" else split): count for split, count in known.images.items()}
    return [
        ("classes", f"{known.classes:,}"),
        ("images", ", ".join(f"{count:,} {split}" for split, count in images.items())),
        ("split", known.split),
        ("metric", known.recipe.metric if isinstance(known.recipe, DataRecipe) else "mIoU"),
        ("layout", known.layout),
        ("size", f"{known.gigabytes:g} GB unpacked"),
        ("paper", known.paper),
        ("torchvision", known.torchvision),
        ("terms", known.terms),
        ("suites", ", ".join(_suites_with(known))),
    ]


def _shifted_facts(known: PublishedSet) -> list[tuple[str, str]]:
    recipe = known.recipe
    return [
        ("classes", "" if recipe.classes is None else f"{recipe.classes:,}"),
        ("images", _shifted_images(recipe)),
        ("metric", _shifted_metric(recipe)),
        ("corruptions", ", ".join(recipe.corruptions)),
        ("layout", _shifted_layout(recipe)),
        ("size", f"{known.gigabytes:g} GB" if known.gigabytes else ""),
        ("paper", known.paper),
        ("protocol", known.source),
        ("terms", known.terms),
        ("suites", ", ".join(_suites_with(known))),
    ]


def _metric(known: KnownSet) -> str:
    if not isinstance(known.recipe, DataRecipe):
        return "mIoU"
    return known.recipe.metric.replace("mean per class", "per class")


def _shifted_metric(recipe: RobustnessDatasetRecipe) -> str:
    """What tables print first."""
    if recipe.kind == "corruptions":
        return "mCE" if recipe.alexnet else "mean error"
    return "AUPR" if recipe.kind == "detection" else "top-1"


def _shifted_layout(recipe: RobustnessDatasetRecipe) -> str:
    if recipe.kind == "corruptions":
        return "DIR/CORRUPTION/SEVERITY/CLASS/*"
    folders = list(filter(None, recipe.parts.values()))
    return "/".join(["DIR", *([f"{{{', '.join(folders)}}}"] if len(folders) > 1 else folders), "CLASS", "*"])


def _shifted_images(recipe: RobustnessDatasetRecipe) -> str:
    """Such as ``75 x 50,000``, or the sum where parts differ."""
    if recipe.images is None:
        return ""
    if isinstance(recipe.images, dict):
        return f"{sum(recipe.images.values()):,}"
    parts = len(recipe.corruptions) * len(recipe.severities) if recipe.kind == "corruptions" else len(recipe.parts)
    return f"{parts} x {recipe.images:,}" if parts > 1 else f"{recipe.images:,}"


def _suites_with(known: AnySet) -> Iterator[str]:
    """Suites of this repository that use a set: in a table of its data, or of robustness."""
    for path in sorted(SUITES.glob("*.toml")):
        suite = tomllib.loads(path.read_text(encoding="utf-8"))
        if isinstance(known, PublishedSet):
            used = any(known.name in table["sets"] for table in suite.get("robustness", {}).values())
        else:
            where = (known.recipe.source, known.recipe.path)
            tables = suite.get("data", {}).values()
            used = any(
                t.get("known") == known.name or (t.get("source", "folder"), t.get("path")) == where for t in tables
            )
        if used:
            yield path.stem
