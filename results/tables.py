"""Tables from records alone: no data, no GPU, and no number typed by hand.

A value is printed only while its record's settings are those of the suite file; else the cell says that it is stale.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, changes, read_outcomes, read_records
from lutbench.statistics import over_seeds, paired

PIPELINE_ONLY = "These numbers show that the pipeline works. They are no evidence about the method."
LEGEND = (
    "Top-1 accuracy in percent with its 95 % interval: Wilson's over images for one seed, Student's t over seeds for "
    "more. An empty cell was not run; published values are not printed for tasks that the literature has not."
)


@dataclass(frozen=True)
class Cell:
    """One method on one task."""

    method: str
    task: str
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    runs: tuple[Record, ...] = ()
    stale: str = ""

    @property
    def text(self) -> str:
        """``81.2 [79.4, 82.9] (1 seed)``, or why there is no number."""
        if self.value is None:
            return f"stale: {self.stale}" if self.stale else ""
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}] ({seeds})"


def cells(suite: LoadedSuite, results_dir: Path) -> list[Cell]:
    """Every cell of the suite's main table, methods and tasks in the suite file's order."""
    records = read_records(results_dir, suite.name)
    made = []
    for method in suite.suite.method:
        for task in suite.suite.task:
            planned = [run for run in suite.runs if (run.task, run.method) == (task, method)]
            made.append(_cell(method, task, planned, records))
    return made


def _cell(method: str, task: str, planned: list[PlannedRun], records: dict[str, Record]) -> Cell:
    current = []
    for run in planned:
        record = records.get(run.name)
        if record is None:
            continue
        changed = changes(record.document["recipe"], run.recipe.affecting_results())
        if changed:
            return Cell(method, task, stale=changed[0])
        current.append(record)
    if not current:
        return Cell(method, task)
    first = [record.measurements[0] for record in current]
    values = [measurement.value for measurement in first]
    low, high = over_seeds(values) if len(values) > 1 else (first[0].low, first[0].high)
    return Cell(method, task, first[0].metric, float(np.mean(values)), low, high, len(values), tuple(current))


def main_table(suite: LoadedSuite, made: Iterable[Cell]) -> pd.DataFrame:
    """A row per method, a column per task."""
    table = pd.DataFrame("", index=list(suite.suite.method), columns=list(suite.suite.task), dtype=object)
    for cell in made:
        table.loc[cell.method, cell.task] = cell.text
    table.index = pd.Index([suite.suite.method[name].label or name for name in suite.suite.method], name="method")
    table.columns = pd.Index([suite.suite.task[name].title or name for name in suite.suite.task])
    return table


def comparison_table(suite: LoadedSuite, made: list[Cell], results_dir: Path) -> pd.DataFrame:
    """The suite's pairs of methods on the same images: difference in points, exact McNemar."""
    by = {(cell.method, cell.task): cell for cell in made}
    rows = []
    for first, second in suite.suite.compare:
        for task in suite.suite.task:
            pair = by[first, task], by[second, task]
            if not all(cell.runs for cell in pair) or len(pair[0].runs) != len(pair[1].runs):
                continue
            outcomes = [[read_outcomes(record, results_dir) for record in cell.runs] for cell in pair]
            if len({o.images for one in outcomes for o in one}) != 1:
                continue  # other images: nothing to pair
            told = paired(*(np.stack([o.right() for o in one]) for one in outcomes))
            rows.append(
                {
                    "task": suite.suite.task[task].title or task,
                    "pair": f"{suite.suite.method[first].label} - {suite.suite.method[second].label}",
                    "difference": f"{100 * told.difference:+.1f} [{100 * told.interval.low:+.1f}, {100 * told.interval.high:+.1f}]",
                    "only first right": told.first_only,
                    "only second right": told.second_only,
                    "p (exact McNemar)": f"{told.p:.2g}",
                    "images": told.images,
                }
            )
    return pd.DataFrame(rows)


def build_tables(suite: LoadedSuite, results_dir: Path) -> dict[str, str]:
    """File name to text: Markdown for people, CSV for programs, LaTeX for papers. Empty without records."""
    made = cells(suite, results_dir)
    measured = [cell for cell in made if cell.value is not None]
    if not any(cell.text for cell in made):
        return {}
    warning = PIPELINE_ONLY if suite.suite.kind == "pipeline" else ""
    table, compared = main_table(suite, made), comparison_table(suite, made, results_dir)
    tidy = pd.DataFrame(
        [
            {
                "suite": suite.name, "method": cell.method, "task": cell.task, "metric": cell.metric,
                "value": cell.value, "low": cell.low, "high": cell.high, "seeds": cell.seeds,
                "runs": " ".join(f"{r.run}@{r.identity[:12]}" for r in cell.runs), "note": warning,
            }
            for cell in measured
        ]
    )  # fmt: skip
    notes = [
        f"- `{r.run}` {r.identity[:12]}, seed {r.seed}, {r.hardware}, code {r.code}" for c in measured for r in c.runs
    ]
    markdown = [f"# {suite.suite.title}", warning, _markdown(table.reset_index()), LEGEND]
    if len(compared):
        markdown += ["## The same images", _markdown(compared)]
    markdown += ["## Runs", "\n".join(notes)]
    return {
        "main.md": "\n\n".join(part for part in markdown if part) + "\n",
        "main.csv": tidy.to_csv(index=False),
        "main.tex": _latex(table.reset_index(), warning),
    }


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
    """Print the main table and the comparisons to the terminal."""
    made = cells(suite, results_dir)
    if suite.suite.kind == "pipeline":
        console.print(PIPELINE_ONLY)
    for frame in (main_table(suite, made).reset_index(), comparison_table(suite, made, results_dir)):
        if len(frame):
            table = Table(*map(str, frame.columns))
            for row in frame.itertuples(index=False):
                table.add_row(*map(str, row))
            console.print(table)
    console.print(LEGEND)


def _markdown(frame: pd.DataFrame) -> str:
    lines = [
        list(map(str, frame.columns)),
        ["---"] * len(frame.columns),
        *(list(map(str, r)) for r in frame.to_numpy()),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _latex(frame: pd.DataFrame, caption: str) -> str:
    rows = [
        " & ".join(_escaped(str(v)) for v in row) + r" \\" for row in [list(frame.columns), *frame.to_numpy().tolist()]
    ]
    head = [f"% {caption}", rf"\caption{{{_escaped(caption)}}}"] if caption else []
    body = [
        r"\begin{tabular}{l" + "l" * (frame.shape[1] - 1) + "}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*head, *body]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&")
