"""Tables from records alone: no data, no GPU, and no number typed by hand.

A value is printed only while its record's settings, and those of the run that its encoder comes from, are those of the
suite file; else the cell says that it is stale, and a footnote why.
Published values come from ``published.toml``, for the method's own report under the encoder of the same name.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pandas as pd

from lutbench.errors import UserError, nearest
from lutbench.progress import console
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
    "Difference in points with its 95 % interval (Agresti and Min); images on which only the first or only the second "
    "method is right (of several seeds, right in more of them); p of the exact McNemar test. "
    "Interval and p tell what other images would change, not what another training run would."
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
    stale: tuple[str, ...] = ()
    """The runs whose records are there and do not count, each with the reason."""
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
    reasons = {run.name: _outdated(suite, run, records) for run in planned if run.name in records}
    current = [records[name] for name, reason in reasons.items() if not reason]
    stale = tuple(f"`{name}` stale: {reason}" for name, reason in reasons.items() if reason)
    if not current:
        return Cell(task, method, encoder, len(planned), stale=stale, published=known)
    first = [record.measurements[0] for record in current]
    values = [measurement.value for measurement in first]
    low, high = over_seeds(values) if len(values) > 1 else (first[0].low, first[0].high)
    return Cell(
        task, method, encoder, len(planned), first[0].metric, float(np.mean(values)), low, high, tuple(current), stale,
        known,
    )  # fmt: skip


def _outdated(suite: LoadedSuite, run: PlannedRun, records: dict[str, Record]) -> str:
    """Why the record of a run is not that of the suite file's settings; empty if it is."""
    record = records[run.name]
    changed = changes(record.document["recipe"], run.recipe.affecting_results())
    if changed or run.needs is None:
        return changed[0] if changed else ""
    if run.needs not in records:
        return f"its encoder's run, {run.needs}, has no record"
    if record.document["encoder"]["run"] != records[run.needs].identity:
        return f"its encoder is not that of the record of {run.needs}"
    needed = next(other for other in suite.runs if other.name == run.needs)
    reason = _outdated(suite, needed, records)
    return f"{run.needs}: {reason}" if reason else ""


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
        measured = ("stale" if cell.stale else "") if cell.value is None else f"{cell.value:.1f}"
        seeds = f"{len(cell.runs)} of {cell.planned}" if 0 < len(cell.runs) < cell.planned else len(cell.runs) or ""
        told = cell.published
        rows.append(
            {
                "task": _title(suite, cell.task),
                "method": _label(suite, cell.method),
                "encoder": cell.encoder,
                "metric": cell.metric,
                "measured": measured,
                "95 % interval": "" if cell.low is None else f"{cell.low:.1f} to {cell.high:.1f}",
                "seeds": str(seeds),
                "published": f"{told.value:.1f} [{letters[told.source]}]" if told else "",
                "difference": f"{cell.value - told.value:+.1f}" if told and cell.value is not None else "",
                "runs": f"[{number}]" if cell.runs or cell.stale else "",
            }
        )
    table = pd.DataFrame(rows)
    # Without a published value in the whole suite the two columns would only be wide.
    return table if letters or table.empty else table.drop(columns=["published", "difference"])


def _title(suite: LoadedSuite, task: str) -> str:
    return suite.suite.downstream[task].title or task


def _label(suite: LoadedSuite, method: str) -> str:
    return suite.suite.method[method].label or method


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
                    "task": _title(suite, task),
                    "pair": f"{_label(suite, first)} - {_label(suite, second)}",
                    "difference": f"{100 * told.difference:+.1f} [{100 * told.interval.low:+.1f}, {100 * told.interval.high:+.1f}]",
                    "only 1st": str(told.first_only),
                    "only 2nd": str(told.second_only),
                    "p": f"{told.p:.2g}",
                    "images": str(told.images),
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
    lines = []
    for number, cell in enumerate(made, 1):
        for r in cell.runs:
            first = r.measurements[0]
            lines.append(
                f"- [{number}] `{r.run}` {r.identity[:12]}: {first.value:.1f} {first.unit}, "
                f"{r.wall_seconds:.0f} s on {r.hardware}, code {r.code}"
            )
        lines += [f"- [{number}] {reason}" for reason in cell.stale]
    return lines


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
        console.print(PIPELINE_ONLY, soft_wrap=False)
    _print(main_table(suite, made), LEGEND)
    _print(comparison_table(suite, made, results_dir), PAIRED)
    for source, letter in _letters(made).items():
        console.print(f"[{letter}] {source}")
    for reason in (reason for cell in made for reason in cell.stale):
        console.print(reason)
    if any(cell.runs or cell.stale for cell in made):
        console.print(
            f"Runs, sources and unrounded numbers: {results_dir / 'tables' / suite.name}/main.md and main.csv"
        )
    else:
        console.print(f"Nothing was measured yet. Run: nox -s pretrain downstream results -- {suite.given}")


def _print(frame: pd.DataFrame, legend: str) -> None:
    """Print a table, if it has rows, without its empty columns and with a heading for every task.

    The heading says what holds for all rows of the task, so that the rest fits into 80 columns for names of usual
    length. A row is one line, never cut or folded; the legend is folded.
    """
    if frame.empty:
        return
    frame = frame.loc[:, (frame != "").any()].drop(columns="runs", errors="ignore")  # footnotes are in the files
    tasks = frame.groupby("task", sort=False)
    shared = [
        name
        for name in ("encoder", "metric")
        if name in frame and all(len({*values} - {""}) <= 1 for _, values in tasks[name])
    ]
    columns = [[str(name), *values] for name, values in frame.drop(columns=["task", *shared]).items()]
    widths = [max(map(len, column)) for column in columns]
    head, *lines = (
        "  ".join(["", *(value.ljust(width) for value, width in zip(row, widths, strict=True))]).rstrip()
        for row in zip(*columns, strict=True)
    )
    console.print(f"\n{head}", style="bold")
    for task, rows in tasks:
        told = [value for name in shared for value in rows[name].unique() if value and value not in str(task)]
        console.print(", ".join([str(task), *told]))
        for number in rows.index:
            console.print(lines[number])
    console.print(legend, soft_wrap=False)


def _markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)
