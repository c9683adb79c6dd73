"""Tables from records alone: no data, no GPU, and no number typed by hand.

A value is printed only while its record's settings are those of the suite file; else the cell says that it is stale.
Published values come from ``published.toml``, for the method's own report under the encoder of the same name.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pandas as pd
from rich.table import Table

from lutbench.errors import UserError, nearest
from lutbench.progress import console, print_table
from lutbench.recipes import ClassificationRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, changes, read_outcomes, read_records
from lutbench.statistics import over_seeds, paired
from results.published import Published, PublishedValue, load_published

PIPELINE_ONLY = "These numbers show that the pipeline works. They are no evidence about the method."
LEGEND = (
    "Measured values in percent, each with its 95 % interval: Wilson's over images for one seed, Student's t over seeds "
    "for more. Published values are those of the method's own report; a difference is measured minus published."
)
PAIRED = (
    "Difference in points over the images, with its 95 % interval (Agresti and Min); how many images only the first "
    "and only the second method gets right; p of the exact McNemar test. "
    "Another training run would move it by more than another sample of images does: one seed says nothing of that."
)

LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"})
"""What pandas escapes in cells and not in captions."""


@dataclass(frozen=True)
class Cell:
    """One method on one task."""

    task: str
    method: str
    encoder: str
    planned: int
    """Seeds in the suite file."""
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    runs: tuple[Record, ...] = ()
    """The records that the value is the mean of, one per seed."""
    stale: str = ""
    """Why a record that is there does not count."""
    published: PublishedValue | None = None


def cells(suite: LoadedSuite, results_dir: Path) -> list[Cell]:
    """Every cell of the suite, tasks and in them methods in the suite file's order.

    Raises:
        UserError: if a record is damaged, or a ``published`` name in the suite file is not in published.toml.
    """
    records = read_records(results_dir, suite.name)
    published = load_published()
    made = []
    for task in suite.suite.downstream:
        for method in suite.suite.method:
            planned = [run for run in suite.runs if (run.task, run.method) == (task, method)]
            if planned:
                made.append(_cell(suite, task, method, planned, records, published))
    return made


def _cell(
    suite: LoadedSuite,
    task: str,
    method: str,
    planned: list[PlannedRun],
    records: dict[str, Record],
    published: Published,
) -> Cell:
    recipe = planned[0].recipe
    assert isinstance(recipe, ClassificationRecipe)
    encoder = recipe.encoder.architecture.label or recipe.encoder.architecture.model
    known = _published(suite, task, method, encoder, published)
    current, stale = [], ""
    for run in planned:
        record = records.get(run.name)
        if record is None:
            continue
        changed = changes(record.document["recipe"], run.recipe.affecting_results())
        if changed:
            stale = stale or changed[0]
        else:
            current.append(record)
    if not current:
        return Cell(task, method, encoder, len(planned), stale=stale, published=known)
    first = [record.measurements[0] for record in current]
    values = [measurement.value for measurement in first]
    low, high = over_seeds(values) if len(values) > 1 else (first[0].low, first[0].high)
    return Cell(
        task, method, encoder, len(planned), first[0].metric, float(np.mean(values)), low, high, tuple(current),
        published=known,
    )  # fmt: skip


def _published(suite: LoadedSuite, task: str, method: str, encoder: str, published: Published) -> PublishedValue | None:
    names = suite.suite.downstream[task].published, suite.suite.method[method].published
    methods = {entry.method for entry in published.reported}
    for where, name, known in (
        (f"downstream.{task}", names[0], set(published.task)),
        (f"method.{method}", names[1], methods),
    ):
        if name and name not in known:
            raise UserError(
                f"{suite.name}: {where}.published: results/published.toml has no {name!r}.{nearest(name, known)}"
            )
    return published.value(names[1], names[0], encoder) if all(names) else None


def main_table(suite: LoadedSuite, made: Iterable[Cell]) -> pd.DataFrame:
    """A row per task and method: measured value, interval, seeds, published value, difference, footnote."""
    letters = _letters(made)
    rows = []
    for number, cell in enumerate(made, 1):
        measured = "" if cell.value is None else f"{cell.value:.1f}"
        if cell.stale and not measured:
            measured = f"stale: {cell.stale}"
        seeds = f"{len(cell.runs)} of {cell.planned}" if 0 < len(cell.runs) < cell.planned else len(cell.runs) or ""
        told = cell.published
        rows.append(
            {
                "task": suite.suite.downstream[cell.task].title or cell.task,
                "method": suite.suite.method[cell.method].label or cell.method,
                "encoder": cell.encoder,
                "metric": cell.metric,
                "measured": measured,
                "95 % interval": "" if cell.low is None else f"{cell.low:.1f} to {cell.high:.1f}",
                "seeds": str(seeds),
                "published": f"{told.value:.1f} [{letters[told.source]}]" if told else "",
                "difference": f"{cell.value - told.value:+.1f}" if told and cell.value is not None else "",
                "runs": f"[{number}]" if cell.runs else "",
            }
        )
    table = pd.DataFrame(rows)
    # Without a published value in the whole suite the two columns would only be wide.
    return table if letters else table.drop(columns=["published", "difference"])


def _letters(made: Iterable[Cell]) -> dict[str, str]:
    """A letter for every source of a published value."""
    sources = dict.fromkeys(cell.published.source for cell in made if cell.published)
    return dict(zip(sources, ascii_lowercase, strict=False))


def comparison_table(suite: LoadedSuite, made: list[Cell], results_dir: Path) -> pd.DataFrame:
    """The suite's pairs of methods on the same images: difference in points, exact McNemar."""
    by = {(cell.method, cell.task): cell for cell in made}
    rows = []
    for task in suite.suite.downstream:
        for first, second in suite.suite.compare:
            if not {(first, task), (second, task)} <= set(by):
                continue
            pair = by[first, task], by[second, task]
            if not pair[0].runs or [r.seed for r in pair[0].runs] != [r.seed for r in pair[1].runs]:
                continue
            outcomes = [[read_outcomes(record, results_dir) for record in cell.runs] for cell in pair]
            if len({o.images for one in outcomes for o in one}) != 1:
                continue  # other images: nothing to pair
            told = paired(*(np.stack([o.right() for o in one]) for one in outcomes))
            rows.append(
                {
                    "task": suite.suite.downstream[task].title or task,
                    "pair": f"{suite.suite.method[first].label} - {suite.suite.method[second].label}",
                    "difference": f"{100 * told.difference:+.1f} [{100 * told.interval.low:+.1f}, {100 * told.interval.high:+.1f}]",
                    "only 1st right": told.first_only,
                    "only 2nd right": told.second_only,
                    "p": f"{told.p:.2g}",
                    "images": told.images,
                }
            )
    return pd.DataFrame(rows)


def build_tables(suite: LoadedSuite, results_dir: Path) -> dict[str, str]:
    """File name to text: Markdown for people, CSV for programs, LaTeX for papers. Empty without records."""
    made = cells(suite, results_dir)
    if not any(cell.runs or cell.stale for cell in made):
        return {}
    warning = PIPELINE_ONLY if suite.suite.kind == "pipeline" else ""
    table, compared = main_table(suite, made), comparison_table(suite, made, results_dir)
    markdown = [f"# {suite.suite.title}", warning, suite.suite.about.strip(), _markdown(table), LEGEND]
    if len(compared):
        markdown += ["## The same images", _markdown(compared), PAIRED]
    markdown += ["## Runs", "\n".join(_footnotes(made))]
    if letters := _letters(made):
        markdown += ["## Sources", "\n".join(f"- [{letter}] {source}" for source, letter in letters.items())]
    caption = f"{suite.suite.title}. {warning}".strip()
    return {
        "main.md": "\n\n".join(part for part in markdown if part) + "\n",
        "main.csv": _tidy(suite, made, warning).to_csv(index=False),
        "main.tex": table.drop(columns="runs").to_latex(index=False, escape=True, caption=caption.translate(LATEX)),
    }


def _footnotes(made: Iterable[Cell]) -> list[str]:
    return [
        f"- [{number}] `{r.run}` {r.identity[:12]}: {r.measurements[0].value:.1f} {r.measurements[0].unit}, "
        f"{r.wall_seconds:.0f} s on {r.hardware}, code {r.code}"
        for number, cell in enumerate(made, 1)
        for r in cell.runs
    ]


def _tidy(suite: LoadedSuite, made: Iterable[Cell], warning: str) -> pd.DataFrame:
    """A row per cell with a value, unrounded, for programs."""
    return pd.DataFrame(
        [
            {
                "suite": suite.name, "task": cell.task, "method": cell.method, "encoder": cell.encoder,
                "metric": cell.metric, "value": cell.value, "low": cell.low, "high": cell.high,
                "seeds": len(cell.runs), "published": cell.published.value if cell.published else None,
                "published in": cell.published.source if cell.published else "",
                "runs": " ".join(f"{r.run}@{r.identity[:12]}" for r in cell.runs), "note": warning,
            }
            for cell in made
            if cell.runs
        ]
    )  # fmt: skip


def write_tables(suite: LoadedSuite, results_dir: Path) -> None:
    """Write the tables to ``tables/SUITE``."""
    folder = results_dir / "tables" / suite.name
    for name, text in build_tables(suite, results_dir).items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def check_tables(suite: LoadedSuite, results_dir: Path) -> list[str]:
    """A unified diff for every table that differs from what its records say; empty if none does."""
    folder = results_dir / "tables" / suite.name
    expected = build_tables(suite, results_dir)
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("main.*")} if folder.is_dir() else {}
    differences = []
    for name in sorted({*expected, *there}):
        old, new = there.get(name, ""), expected.get(name, "")
        if old != new:
            lines = difflib.unified_diff(
                old.splitlines(), new.splitlines(), f"{name} as it is", f"{name} as records say", lineterm=""
            )
            differences.append("\n".join(lines))
    return differences


def show_tables(suite: LoadedSuite, results_dir: Path) -> None:
    """Print the main table and the comparisons to the terminal, published values also where nothing was measured."""
    made = cells(suite, results_dir)
    console.print(suite.suite.title, style="bold")
    if suite.suite.kind == "pipeline":
        console.print(PIPELINE_ONLY)
    for frame, legend in ((main_table(suite, made), LEGEND), (comparison_table(suite, made, results_dir), PAIRED)):
        if not frame.empty:
            same = [column for column in ("encoder", "metric", "pair") if column in frame and _constant(frame[column])]
            console.print("\n" + ", ".join(f"{column} {frame[column].iloc[0]}" for column in same))
            print_table(_for_terminal(frame.drop(columns=same)))
            console.print(legend)
    for source, letter in _letters(made).items():
        console.print(f"[{letter}] {source}")
    if any(cell.runs for cell in made):
        console.print(
            f"Runs, sources and unrounded numbers: {results_dir / 'tables' / suite.name}/main.md and main.csv"
        )
    else:
        console.print(f"Nothing was measured yet. Run: nox -s pretrain downstream results -- {suite.given}")


def _for_terminal(frame: pd.DataFrame) -> Table:
    """The frame with a gap between tasks, each named once."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in frame.columns:
        table.add_column(column, no_wrap=True)
    before = ""
    for row in frame.itertuples(index=False):
        if before and row[0] != before:
            table.add_row()
        table.add_row("" if row[0] == before else row[0], *map(str, row[1:]))
        before = row[0]
    return table


def _constant(column: pd.Series) -> bool:
    return bool(column.iloc[0] and (column == column.iloc[0]).all())


def _markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)
