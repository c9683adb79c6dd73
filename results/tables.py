"""Tables and figures from records alone: no data, no GPU, and no number typed by hand."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

import pandas as pd

from lutbench.files import whole_file
from lutbench.progress import console
from lutbench.recipes import TASKS, SegmentationRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record
from lutbench.statistics import RESAMPLES
from results.cells import Cell, cells, method_label, task_title
from results.comparisons import comparison_tables

PIPELINE_ONLY = "These numbers show that the pipeline works. They are no evidence about the method."
LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"})
"""What pandas escapes in cells and not in captions."""


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
                "task": task_title(suite, cell.task),
                "method": method_label(suite, cell.method),
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


def _letters(made: Iterable[Cell]) -> dict[str, str]:
    """A letter for every source of a published value."""
    sources = dict.fromkeys(cell.published.source for cell in made if cell.published)
    return {source: _letter(number) for number, source in enumerate(sources)}


def _letter(number: int) -> str:
    """a to z, then aa, ab ..."""
    before, last = divmod(number, len(ascii_lowercase))
    return (_letter(before - 1) if before else "") + ascii_lowercase[last]


def _legend(suite: LoadedSuite) -> str:
    segmented = {TASKS[task.kind] is SegmentationRecipe for task in suite.suite.downstream.values()}
    of_one = {False: "Wilson's over images", True: f"percentiles of {RESAMPLES} resamples of the images"}
    intervals = " or, of mIoU, ".join(of_one[kind] for kind in sorted(segmented))
    return (
        f"Measured values in percent, each with its 95 % interval: {intervals} for one seed, Student's t over seeds "
        "for more. Published values are those of the method's own report; a difference is measured minus published."
    )


def build_tables(suite: LoadedSuite, results_dir: Path) -> dict[str, str]:
    """File name to text: Markdown for people, CSV for programs, LaTeX for papers. Empty without records."""
    return _texts(suite, cells(suite, results_dir), results_dir)


def _texts(suite: LoadedSuite, made: list[Cell], results_dir: Path) -> dict[str, str]:
    if not any(cell.runs or cell.stale for cell in made):
        return {}
    warning = PIPELINE_ONLY if suite.suite.kind == "pipeline" else ""
    table, compared = main_table(suite, made), comparison_tables(suite, made, results_dir)
    markdown = [f"# {suite.suite.title}", warning, suite.suite.about.strip(), _markdown(table), _legend(suite)]
    if compared:
        markdown += ["## The same images", *(text for one in compared for text in (_markdown(one.table), one.legend))]
    if drawings := _drawings(suite, made):
        links = (f"![{drawing.title}](../../figures/{suite.name}/{name})" for name, drawing in drawings.items())
        markdown += ["## Classes", *links]
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
    table = pd.DataFrame(
        [
            {
                "suite": suite.name, "task": cell.task, "method": cell.method, "encoder": cell.encoder,
                "metric": cell.metric, "value": cell.value, "low": cell.low, "high": cell.high,
                "seeds": len(cell.runs), "published": cell.published.value if cell.published else None,
                "published in": cell.published.source if cell.published else "",
                "runs": " ".join(f"{r.run}@{r.identity[:12]}" for r in cell.runs), "note": warning,
            }
            for cell in made
        ]
    )  # fmt: skip
    return table[table["seeds"] > 0]  # its columns are named even if there is none


class _Drawing(NamedTuple):
    title: str
    methods: list[tuple[str, tuple[Record, ...]]]


def _drawings(suite: LoadedSuite, made: Iterable[Cell]) -> dict[str, _Drawing]:
    """File name to what is drawn of every segmentation task that has a record."""
    drawings = {
        f"{task}-iou.png": _Drawing(
            f"{suite.suite.title}, {task_title(suite, task)}: IoU per class",
            [(method_label(suite, cell.method), cell.runs) for cell in made if cell.task == task and cell.runs],
        )
        for task, table in suite.suite.downstream.items()
        if TASKS[table.kind] is SegmentationRecipe
    }
    return {name: drawing for name, drawing in drawings.items() if drawing.methods}


def write_tables(suite: LoadedSuite, results_dir: Path) -> None:
    """Write the tables to ``tables/SUITE``, and to ``figures/SUITE`` what they show.

    Raises:
        UserError: if a record is damaged, or on a full disk.
    """
    made = cells(suite, results_dir)
    folder = results_dir / "tables" / suite.name
    for name, text in _texts(suite, made, results_dir).items():
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    drawings = _drawings(suite, made)
    if drawings:
        from results.figures import write_class_figure  # here, because matplotlib takes a second to import

        for name, drawing in drawings.items():
            note = PIPELINE_ONLY if suite.suite.kind == "pipeline" else ""
            write_class_figure(_figure_path(suite, name, results_dir), drawing.title, drawing.methods, note)


def check_tables(suite: LoadedSuite, results_dir: Path) -> list[str]:
    """A unified diff for every table that differs from what its records say, and every figure that is missing.

    Empty if there are none. What is in a figure is not compared: its pixels depend on matplotlib's version.
    """
    made = cells(suite, results_dir)
    folder = results_dir / "tables" / suite.name
    expected = _texts(suite, made, results_dir)
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("main.*")} if folder.is_dir() else {}
    differences = []
    for name in sorted({*expected, *there}):
        old, new = there.get(name, ""), expected.get(name, "")
        if old != new:
            lines = difflib.unified_diff(
                old.splitlines(), new.splitlines(), f"{name} as it is", f"{name} as records say", lineterm=""
            )
            differences.append("\n".join(lines))
    figures = (_figure_path(suite, name, results_dir) for name in _drawings(suite, made))
    return differences + [f"{path} is missing" for path in figures if not path.is_file()]


def _figure_path(suite: LoadedSuite, name: str, results_dir: Path) -> Path:
    return results_dir / "figures" / suite.name / name


def show_tables(suite: LoadedSuite, results_dir: Path) -> None:
    """Print the main table and the comparisons to the terminal, published values also where nothing was measured."""
    made = cells(suite, results_dir)
    console.print(suite.suite.title, style="bold")
    if suite.suite.kind == "pipeline":
        console.print(PIPELINE_ONLY, soft_wrap=False)
    _print(main_table(suite, made), _legend(suite))
    for compared in comparison_tables(suite, made, results_dir):
        _print(compared.table, compared.legend)
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
