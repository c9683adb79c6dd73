"""``lutbench show``: what is behind a run's numbers: their origin, whether they follow from the outcomes, and the worst mistakes."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.table import Table

from lutbench.errors import UserError, listed
from lutbench.evaluate.outcomes import Measurement
from lutbench.lineage import lineage, roots_of, started_from
from lutbench.progress import console, print_table
from lutbench.provenance import packages
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.differences import NOT_SET, recipe_of, settings_of
from lutbench.recipes.suite import PlannedRun
from lutbench.record import Record, same_number
from lutbench.report.values import interval_legend, took_text
from lutbench.smoke.mark import MARK, is_smoke
from lutbench.sources import differing

WORST = 10
"""Number of images listed under the worst mistakes."""

IN_WORDS = {
    "skipped": "images skipped because they cannot be decoded",
    "waiting_for_data": "share of the time spent waiting for data",
    "training_images": "training images",
    "flop_per_image": "FLOP per training image",
    "loss": "loss at the end of training",
    "head": "loss of the head",
    "auxiliary": "loss of the auxiliary head",
    "drawn blocks": "blocks shown in the pictures",
    "marked": "patch marked in the pictures, row and column",
    "mask ratios": "mask ratios of the reconstructions",
    "features_kept": "splits whose features came from the cache",
    "mean_cosine": "mean cosine similarity of the training features",
    "effective_rank": "effective rank of the training features",
    "held_out_top_1": "top-1 of each choice on held-out training images, %",
    "held_out_images": "number of held-out training images",
    "first query": "second query whose attention is shown, besides the marked patch",
}
"""Labels of the further values in a record, besides its measurements."""

SHARES = ("waiting_for_data", "mask ratios")
"""Those of them that are printed in percent."""


def show_record(record: Record, runs: Path, results: Path) -> bool:
    """Print what is behind a record's numbers; return whether its files are intact and its numbers follow from its outcomes."""
    recipe = recipe_of(record.kind, record.recipe)
    console.print(f"{record.suite}/{record.run}", style="bold")
    if is_smoke(record.identity_inputs):
        console.print(MARK)
    _section("Origin", *_facts(_steps(record, results)))
    _section("Image preprocessing", *_facts(_prepared(record, recipe)))
    _section("Results", _measurements(record))
    sound = _show_outcomes(record)
    _section("Settings", *_recipe(record, recipe))
    _section("Code and machine", *_facts(_origin(record, recipe)))
    _section("Files", *_facts(_files(record, runs)))
    return sound and all(_whole(record, kept) == "" for kept in record.files)


def _section(title: str, *parts: Table | str) -> None:
    console.print(f"\n{title}", style="bold")
    for part in parts:
        if isinstance(part, Table):
            print_table(part)
        elif part:
            console.print(part)


def _facts(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield names and texts, wrapped to the width of the terminal; hashes and paths are not broken."""
    kept = list(rows)
    indent = max(len(name) for name, _ in kept) + 2
    whole = {"break_long_words": False, "break_on_hyphens": False}
    for name, text in kept:
        yield fill(text, console.width, initial_indent=name.ljust(indent), subsequent_indent=" " * indent, **whole)  # type: ignore[arg-type]


def _table(*columns: tuple[str, int], right: Iterable[str] = ()) -> Table:
    """Return a table without lines; each column has a heading and a maximum width (0: none)."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=any(name for name, _ in columns), header_style="dim")
    for name, width in columns:
        table.add_column(
            name,
            justify="right" if name in right else "left",
            max_width=width or None,
            no_wrap=not width,
            overflow="fold",
        )
    return table


def _steps(record: Record, results: Path) -> Iterator[tuple[str, str]]:
    for link in lineage(record, roots_of(record, results)):
        yield link.kind, link.name
        yield from ((f"  {name}", text) for name, text in link.facts.items())


def _prepared(record: Record, recipe: RunRecipe | None) -> Iterator[tuple[str, str]]:
    """Yield how images were normalised, resized and cropped in evaluation, as far as that can differ for this kind of run."""
    other = started_from(record).get("preprocessing") or {}
    applied = recipe.prepared_by if recipe else ("mean", "std", "interpolation")
    for name in ("mean", "std", "interpolation"):
        if name in other:
            value = other[name]
            yield name, value if isinstance(value, str) else ", ".join(f"{channel:g}" for channel in value)
        elif name in applied:
            yield name, "as ImageNet's" if name != "interpolation" else "bicubic, as ImageNet's"
    dataset = record.recipe.get("set") or {}
    resizings = dataset.get("preprocessing") or []
    if resizings:
        yield "resizing", ", ".join(resizings)
    crops = {"crop": dataset.get("eval_crop") or record.recipe.get("eval_crop")}
    if crop := other.get("crop_pct"):
        own = {"crop of own": crop} if resizings else {"crop": crop}
        crops = own if resizings == ["own"] else crops | own
    for name, crop in crops.items():
        if crop:
            part = "the whole short side" if crop == 1 else f"{crop:.4g} of the resized short side"
            yield name, f"centre crop in evaluation, {part}"
    if mode := other.get("crop_mode"):
        yield "crop mode", f"timm's {mode}"


def _measurements(record: Record) -> Table:
    table = _table(("metric", 0), ("value", 0), ("95 % interval", 0), ("n", 0), right=("value", "n"))
    for m in record.measurements:
        value, _, interval = m.text().partition(" ")
        table.add_row(m.metric, f"{value} {m.unit}".strip(), interval, "" if m.n is None else f"{m.n:,}")
    return table


def _show_outcomes(record: Record) -> bool:
    """Print whether the numbers follow from the outcomes, and the worst mistakes; return whether they do, or there are no outcomes."""
    legend = interval_legend(record.measurements)
    if legend:
        console.print(fill(f"Intervals: {legend}.", console.width))
    if outside := [m.metric for m in record.measurements if _is_outside(m)]:
        console.print(
            fill(
                f"Outside its interval: {', '.join(outside)}. With few images such a value is biased; the interval corrects for the bias, the "
                "value does not.",
                console.width,
            )
        )
    if record.outcomes_file is None:
        console.print("The record has no per-image outcomes, so its numbers cannot be recomputed.", soft_wrap=False)
        return True
    try:
        outcomes = record.outcomes
        counted: list[Measurement] = outcomes.measurements()
    except (UserError, ArithmeticError, LookupError, ValueError) as error:
        console.print(f"The numbers cannot be recomputed: {error}", soft_wrap=False)
        return False
    differences = list(_differences(record.measurements, counted))
    if differences:
        console.print(f"Recomputed from the outcomes: {len(differences)} differ:", style="red", soft_wrap=False)
        for line in differences:
            console.print(f"  {line}", soft_wrap=False)
    else:
        console.print(f"Recomputed from the outcomes: all {len(counted)} are equal.", soft_wrap=False)
    sentence, worst = outcomes.most_wrong(WORST)
    if sentence:
        names = "" if any(name.endswith("names") for name in outcomes.arrays()) else (
            " The record has no image names (it is from an earlier version), so images are numbered by their row in the dataset, from 0."
        )  # fmt: skip
        table = _table(("image", 46), *((str(name), 0) for name in worst.columns[1:]), right=worst.columns)
        table.columns[0].justify = "left"
        for row in worst.itertuples(index=False):
            table.add_row(*(_plain(value) for value in row))
        none = "None: every image is correct."
        _section("Worst mistakes", table if len(worst) else none, fill(f"{sentence}{names}", console.width))
    return not differences


def _is_outside(m: Measurement) -> bool:
    """Return whether a value lies outside its interval."""
    return m.low is not None and m.high is not None and not m.low <= m.value <= m.high


def _differences(written: list[Measurement], counted: list[Measurement]) -> Iterator[str]:
    by_metric = {m.metric: m for m in counted}
    for m in written:
        now = by_metric.pop(m.metric, None)
        if now is None or not same_number(m, now):
            yield f"{m.metric}: {m.text(m.unit)} in the record, {now.text(now.unit) if now else 'nothing'} now"
    yield from (f"{m.metric}: not in the record, {m.text(m.unit)} now" for m in by_metric.values())


def _recipe(record: Record, recipe: RunRecipe | None) -> tuple[Table, str]:
    """Return every setting that affects results, with its default and its value in the paper's suite where they differ."""
    rows, paper = settings_of(record.identity_inputs["recipe"], record.kind, recipe)
    table = _table(("setting", 0), ("value", 22), ("other values", 32))
    shown: list[str] = []
    for row in rows:
        *tables, name = row.name.split(".")
        for depth, of in enumerate(tables):
            if shown[: depth + 1] != tables[: depth + 1]:
                table.add_row("  " * depth + of)
        shown = tables
        others = {"default": row.default, "paper": row.paper}
        differing = {name: _setting(value) for name, value in others.items() if value not in (NOT_SET, row.value)}
        if len({*differing.values()}) == 1 and len(differing) == 2:
            differing = {"default, paper": differing["paper"]}
        table.add_row(
            "  " * len(tables) + name,
            _setting(row.value),
            "\n".join(f"{of}: {value}" for of, value in differing.items()),
        )
    legend = "All settings that affect results. Other values: the default where it differs"
    if paper:
        legend += (
            f", and the value in the run {paper.suite}/{paper.name}, which is the {paper.kind.name} run of suite paper that differs from this "
            "run in the fewest settings"
        )
    return table, fill(f"{legend}.", console.width)


def _origin(record: Record, recipe: RunRecipe | None) -> Iterator[tuple[str, str]]:
    yield "code", record.code.details
    yield "sources", _sources(record, recipe)
    yield "machine", record.hardware.details
    installed = packages()
    versions = [
        f"{name} {version}"
        + (f" (now {installed.get(name, 'not installed')})" if installed.get(name) != version else "")
        for name, version in record.packages.items()
    ]
    yield "packages", ", ".join(versions)
    yield "took", f"{took_text(record)}; finished {record.created}"
    further = [
        f"{IN_WORDS.get(name, name.replace('_', ' '))}: {_rounded(value, name in SHARES)}"
        for name, value in record.extra.items()
    ]
    if further:
        yield "also", "; ".join(further)


def _sources(record: Record, recipe: RunRecipe | None) -> str:
    """Return which source files that a run depends on have changed since it finished."""
    if not record.code.sources:
        return "not known: the record is from an earlier version, without hashes of the source files"
    if recipe is None:
        return "not comparable: this version does not accept its settings"
    planned = PlannedRun(record.suite, record.kind, record.task, record.method, record.seed, recipe, draw=record.draw)
    changed = differing(record.code.sources, planned)
    return f"{len(record.code.sources)} files, " + (
        f"changed since then: {listed(changed)}" if changed else "none changed since then"
    )


def _files(record: Record, runs: Path) -> Iterator[tuple[str, str]]:
    yield "record", str(record.folder / f"{record.run.rpartition('/')[2]}.json")
    for number, kept in enumerate(record.files):
        what = "outcomes" if number == 0 and record.outcomes_file else getattr(kept, "kind", "file")
        problem = _whole(record, kept)
        size = "" if problem else f", {(record.folder / kept.file).stat().st_size:,} bytes"
        yield what, f"{kept.file}{size}{problem}"
    folder = runs / record.suite / record.run / record.identity[:12]
    if not folder.is_dir():
        yield "run", f"{folder} not found (set the folder of the runs with --runs)"
        return
    yield "run", str(folder)
    for path in sorted(folder.iterdir()):
        yield "", f"{path.name}/" if path.is_dir() else f"{path.name}, {path.stat().st_size:,} bytes"


def _whole(record: Record, kept: Any) -> str:
    """Return what is wrong with a file of a record; empty if nothing is."""
    try:
        record.content(kept)
    except UserError as error:
        return f": {str(error).rpartition(': ')[2]}"
    return ""


def _setting(value: Any) -> str:
    """Return a setting as in suite files, text without quotation marks."""
    if value is None:
        return "not set"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _rounded(value: Any, share: bool = False) -> str:
    """Return a value of a record with three digits, an integer as it is, a share in percent."""
    if isinstance(value, list):
        return ", ".join(_rounded(one, share) for one in value)
    if share and isinstance(value, float | int):
        return f"{100 * value:.3g} %"
    return f"{value:.3g}" if isinstance(value, float) else _setting(value)


def _plain(value: Any) -> str:
    """Return a table cell; unprintable characters in file names are escaped."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else repr(text)
