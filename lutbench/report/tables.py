"""Tables and figures from records alone: no data, no GPU, and no number typed by hand."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from lutbench.evaluate.outcomes import PER_CLASS
from lutbench.evaluate.statistics import RESAMPLES
from lutbench.files import whole_file
from lutbench.kinds import KINDS
from lutbench.progress import console
from lutbench.recipes import ClassificationRecipe, SegmentationRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record
from lutbench.report.comparisons import comparison_tables
from lutbench.report.entries import TableEntry, entries
from lutbench.report.names import method_names, task_title
from lutbench.report.robustness_tables import (
    CORRUPTIONS_LEGEND,
    LEGEND,
    corruption_tables,
    every_measurement,
    measured_sets,
    not_run,
    robust_cells,
    robust_table,
)
from lutbench.report.rows import footnotes, letters, stale_reasons, value_table

FILES = ("main.md", "main.csv", "main.tex", "robustness.csv", "robustness.tex")
"""All that a suite's folder of tables may hold; other files in it are nobody's business here."""

CORRUPTIONS_SHOWN = "Mean over severities, lower is better; intervals of the errors are in main.md."
PIPELINE_ONLY = "These numbers show that the pipeline works. They are no evidence about the method."
LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"})
"""What pandas escapes in cells and not in captions."""
ARROWS = str.maketrans({"↑": r"$\uparrow$", "↓": r"$\downarrow$"})
"""LaTeX's own fonts have them in formulas only."""


def main_table(suite: LoadedSuite, made: Sequence[TableEntry]) -> pd.DataFrame:
    """A row per downstream task and method: measured value, interval, seeds, published value, difference, footnote."""
    return value_table(suite, [cell for cell in made if cell.stage == "downstream"], made)


def _legend(suite: LoadedSuite) -> str:
    recipes = [run.recipe for run in suite.runs if run.stage == "downstream"]
    classified = any(isinstance(recipe, ClassificationRecipe) for recipe in recipes)
    resampled = ["mIoU"] if any(isinstance(recipe, SegmentationRecipe) for recipe in recipes) else []
    if any(isinstance(recipe, ClassificationRecipe) and recipe.data.metric == PER_CLASS for recipe in recipes):
        resampled.append(PER_CLASS)
    of_one = ["Wilson's over images"] if classified else []
    if resampled:
        which = f"of {' and '.join(resampled)}, " if classified else ""
        of_one.append(f"{which}percentiles of {RESAMPLES} resamples of the images")
    return (
        f"Measured values in percent, each with its 95 % interval: {' or, '.join(of_one)} for one seed, Student's t over seeds "
        "for more. Published values are those of the method's own report; a difference is measured minus published."
    )


def build_tables(suite: LoadedSuite, results_dir: Path) -> dict[str, str]:
    """File name to text: Markdown for people, CSV for programs, LaTeX for papers. Empty without records."""
    return _texts(suite, entries(suite, results_dir), results_dir)


def _texts(suite: LoadedSuite, made: list[TableEntry], results_dir: Path) -> dict[str, str]:
    if not any(cell.runs or cell.stale for cell in made):
        return {}
    warning = _warning(suite)
    main, robust = main_table(suite, made), robust_table(suite, made)
    corrupted, compared = corruption_tables(suite, made, results_dir), comparison_tables(suite, made, results_dir)
    drawings = _drawings(suite, made)
    markdown = [f"# {suite.config.title}", warning, suite.config.about.strip()]
    if not main.empty:
        markdown += [_markdown(main), _legend(suite)]
    if robust_cells(made):
        markdown += ["## Shifted test sets"]
        markdown += [] if robust.empty else [_markdown(robust.rename(columns={"task": "set"})), LEGEND]
        markdown += [not_run(suite, made)]
    if corrupted:
        markdown += ["## Corruptions"]
        for one in corrupted:
            markdown += [f"### {one.title}", _markdown(one.table)]
        markdown += [CORRUPTIONS_LEGEND]
        markdown += _pictures(suite, drawings, "severity")
    markdown += _pictures(suite, drawings, "occlusion", "## Occlusion")
    if compared:
        markdown += ["## The same images", *(text for one in compared for text in (_markdown(one.table), one.legend))]
    markdown += _pictures(suite, drawings, "classes", "## Classes")
    markdown += ["## Runs", "\n".join(footnotes(made))]
    if marks := letters(made):
        markdown += ["## Sources", "\n".join(f"- [{letter}] {source}" for source, letter in marks.items())]
    texts = {
        "main.md": "\n\n".join(part for part in markdown if part) + "\n",
        "main.csv": _tidy(suite, made, warning).to_csv(index=False),
    }
    if not main.empty:
        texts["main.tex"] = _latex(main.drop(columns="runs"), f"{suite.config.title}. {warning}")
    if robust_cells(made):
        texts["robustness.csv"] = every_measurement(suite, made, warning).to_csv(index=False)
    if not robust.empty:
        captioned = {
            f"{suite.config.title}, shifted test sets": robust.drop(columns="runs").rename(columns={"task": "set"})
        }
        captioned |= {f"{suite.config.title}, {one.title}: top-1 error": one.table for one in corrupted}
        texts["robustness.tex"] = "\n".join(
            _latex(table, f"{caption}. {warning}", longtable=True) for caption, table in captioned.items()
        )
    return texts


def _warning(suite: LoadedSuite) -> str:
    return PIPELINE_ONLY if suite.config.kind == "pipeline" else ""


def _latex(table: pd.DataFrame, caption: str, longtable: bool = False) -> str:
    text = table.to_latex(index=False, escape=True, caption=caption.strip().translate(LATEX), longtable=longtable)
    return text.translate(ARROWS)


def _pictures(suite: LoadedSuite, drawings: Mapping[str, "_Drawing"], kind: str, heading: str = "") -> list[str]:
    """Links to the figures of one kind, below a heading if there are any."""
    links = [
        f"![{drawing.title}](../../figures/{suite.name}/{name})"
        for name, drawing in drawings.items()
        if drawing.kind == kind
    ]
    return [heading, *links] if links else []


def _tidy(suite: LoadedSuite, made: Sequence[TableEntry], warning: str) -> pd.DataFrame:
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


_Kind = Literal["classes", "severity", "occlusion"]


class _Drawing(NamedTuple):
    kind: _Kind
    title: str
    methods: list[tuple[str, tuple[Record, ...]]]


def _drawings(suite: LoadedSuite, made: Sequence[TableEntry]) -> dict[str, _Drawing]:
    """File name to what is drawn: every segmentation, corrupted set and set with occlusions that has a record."""
    segmented = [task for task, table in suite.config.downstream.items() if KINDS[table.kind].name == "segmentation"]
    kinds: tuple[tuple[list[str], _Kind, str, str], ...] = (
        (segmented, "classes", "iou", "IoU per class"),
        (measured_sets(suite, made, "corruptions"), "severity", "severity", "accuracy against severity"),
        (
            measured_sets(suite, made, "occlusion"),
            "occlusion",
            "occlusion",
            "accuracy with patches dropped or shuffled",
        ),
    )
    drawings = {}
    for tasks, kind, ending, told in kinds:
        for task in tasks:
            records = {cell.method: cell.runs for cell in made if cell.task == task and cell.runs}
            names = method_names(suite, {cell.method: cell.encoder for cell in made if cell.task == task})
            if records:
                drawings[f"{task.replace('/', '-')}-{ending}.png"] = _Drawing(
                    kind,
                    f"{suite.config.title}, {task_title(suite, task)}: {told}",
                    [(names[method], runs) for method, runs in records.items()],
                )
    return drawings


def write_tables(suite: LoadedSuite, results_dir: Path) -> list[TableEntry]:
    """Write the tables to ``tables/SUITE``, and to ``figures/SUITE`` what they show. A table of no records is removed.

    Returns the cells that they are made of, for :func:`show_tables`.

    Raises:
        UserError: if a record is damaged, or on a full disk.
    """
    made = entries(suite, results_dir)
    folder = results_dir / "tables" / suite.name
    texts = _texts(suite, made, results_dir)
    for name, text in texts.items():
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for name in FILES:
        if name not in texts:
            (folder / name).unlink(missing_ok=True)
    for name, drawing in _drawings(suite, made).items():
        _draw(_figure_path(suite, name, results_dir), drawing, _warning(suite), results_dir)
    return made


def _draw(path: Path, drawing: _Drawing, note: str, results_dir: Path) -> None:
    from lutbench.report.figures import (  # here, because matplotlib takes a second to import
        write_class_figure,
        write_figure,
    )

    if drawing.kind == "classes":
        write_class_figure(path, drawing.title, drawing.methods, note)
        return
    from lutbench.report.curves import occlusion_figure, severity_figure

    outcomes: Any = [(label, [r.outcomes for r in records]) for label, records in drawing.methods]
    figure = severity_figure if drawing.kind == "severity" else occlusion_figure
    write_figure(path, figure(drawing.title, outcomes, note))


def check_tables(suite: LoadedSuite, results_dir: Path) -> list[str]:
    """A unified diff for every table that differs from what its records say, and every figure that is missing.

    Empty if there are none. What is in a figure is not compared: its pixels depend on matplotlib's version.
    """
    made = entries(suite, results_dir)
    folder = results_dir / "tables" / suite.name
    expected = _texts(suite, made, results_dir)
    there = {name: (folder / name).read_text(encoding="utf-8") for name in FILES if (folder / name).is_file()}
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


def show_tables(suite: LoadedSuite, results_dir: Path, made: list[TableEntry] | None = None) -> None:
    """Print tables and comparisons to the terminal, published values also where nothing was measured.

    ``made`` are the suite's cells, if they were collated already.
    """
    made = entries(suite, results_dir) if made is None else made
    robust = bool(robust_cells(made))
    console.print(suite.config.title, style="bold")
    if warning := _warning(suite):
        console.print(warning, soft_wrap=False)
    _print(main_table(suite, made), _legend(suite))
    _print(_by_metric(robust_table(suite, made)), LEGEND)
    if missing := not_run(suite, made):
        console.print(missing, soft_wrap=False)
    for one in corruption_tables(suite, made, results_dir):
        without = one.table.replace(r"^(\d[\d.]*) \[.*", r"\1", regex=True)  # differences begin with a sign
        _print(without.assign(task=f"{one.title}, top-1 error, %"), CORRUPTIONS_SHOWN)
    for compared in comparison_tables(suite, made, results_dir):
        _print(_by_metric(compared.table), compared.legend)
    for source, letter in letters(made).items():
        console.print(f"[{letter}] {source}")
    for reason in stale_reasons(made):
        console.print(reason)
    if any(cell.runs or cell.stale for cell in made):
        files = "main.md, main.csv and robustness.csv" if robust else "main.md and main.csv"
        console.print(f"Runs, sources and unrounded numbers: {results_dir / 'tables' / suite.name}/{files}")
    else:
        stages = "pretrain downstream robustness results" if robust else "pretrain downstream results"
        console.print(f"Nothing was measured yet. Run: nox -s {stages} -- {suite.given}")


def _by_metric(frame: pd.DataFrame) -> pd.DataFrame:
    """With a heading for every task and metric where a task has several."""
    if "metric" not in frame:
        return frame
    return frame.assign(task=(frame["task"] + ", " + frame["metric"]).str.removesuffix(", ")).drop(columns="metric")


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
