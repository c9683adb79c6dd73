"""Print the known datasets as a table, or everything about one of them."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lutbench.data.catalogue import (
    CATALOGUE,
    MEASURED_ON,
    PRESENT,
    SEARCHED,
    TRAINED_ON,
    DatasetStatus,
    KnownDataset,
    status_of,
)
from lutbench.recipes.loading import SUITES

SPLITS = ("train", "val")


def render_list(root: Path) -> RenderableType:
    """Return the known datasets as tables: for training, for retrieval, and for robustness."""
    sets = _table(("set", "classes", *SPLITS, "metric", "state"), f"Datasets below {root.absolute()}")
    searched = _table(("retrieval set", "images", "metric", "state"))
    measured = _table(("robustness set", "classes", "images", "metric", "state"))
    for name, known in CATALOGUE.items():
        state, metric = status_of(known, root).state, known.recipe.printed_metric.replace("mean per class", "per class")
        if name in TRAINED_ON:
            counts = [f"{known.images[split]:,}" if split in known.images else "" for split in SPLITS]
            counts = [f"{known.images['all']:,}", "in all"] if "all" in known.images else counts
            sets.add_row(name, f"{known.classes:,}", *counts, metric, state)
        elif name in SEARCHED:
            searched.add_row(name, _images(known), metric, state)
        else:
            measured.add_row(name, f"{known.classes:,}", _images(known), metric, state)
    return Group(
        sets,
        Text(),
        searched,
        Text(),
        measured,
        Text("\nDetails of a dataset, and how to get it: lutbench data list NAME"),
    )


def render_dataset(status: DatasetStatus) -> RenderableType:
    """Return all information about a dataset, ready to print."""
    known = status.known
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in [*_rows(known), ("folder", str(status.path)), ("state", status.state)]:
        if value:
            grid.add_row(name, value)
    steps: list[RenderableType] = []
    for line in status.steps.splitlines():
        command = line.startswith(" ")  # a command to copy is never wrapped; other lines are prose
        steps.append(Text(f"  {line}") if command else Padding.indent(Text(line, no_wrap=False, overflow="fold"), 2))
    then = (
        [] if status.state != PRESENT else [Text(f"\nTo check that it is complete: lutbench data check {known.name}")]
    )
    title = Text(f"{known.name}: {known.title}\n", style="bold", no_wrap=False, overflow="fold")
    return Group(title, grid, Text("\nHow to get it"), *steps, *then)


def _table(columns: tuple[str, ...], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        right = column in ("classes", "images", *SPLITS)
        table.add_column(column, no_wrap=column != "state", overflow="fold", justify="right" if right else "left")
    return table


def _rows(known: KnownDataset) -> list[tuple[str, str]]:
    size = "" if not known.gigabytes else f"{known.gigabytes:g} GB{'' if known.name in MEASURED_ON else ' unpacked'}"
    return [
        ("classes", f"{known.classes:,}" if known.classes else ""),
        ("images", _images(known)),
        ("split", known.split),
        ("metric", known.recipe.printed_metric),
        ("corruptions", ", ".join(getattr(known.recipe, "corruptions", ()))),
        ("layout", known.layout),
        ("size", size),
        ("paper", known.paper),
        ("protocol", known.protocol),
        ("torchvision", known.torchvision),
        ("terms", known.terms),
        ("suites", ", ".join(_suites_with(known))),
    ]


def _images(known: KnownDataset) -> str:
    """Return the number of images of each split; for a robustness dataset, of its parts."""
    splits = (f"{count:,} {'in all' if split == 'all' else split}" for split, count in known.images.items())
    return known.recipe.image_counts or ", ".join(splits)


def _suites_with(known: KnownDataset) -> Iterator[str]:
    """Yield the shipped suites that use a dataset, in [data] or [robustness] tables."""
    for path in sorted(SUITES.glob("*.toml")):
        suite = tomllib.loads(path.read_text(encoding="utf-8"))
        opened = (known.recipe.source, known.recipe.path)
        if known.name not in MEASURED_ON:
            tables = suite.get("data", {}).values()
            used = any(
                t.get("known") == known.name or (t.get("source", "folder"), t.get("path")) == opened for t in tables
            )
        else:
            used = any(known.name in table["sets"] for table in suite.get("robustness", {}).values())
        if used:
            yield path.stem
