"""Sections: the parts of a suite's tables and report, in any format; and the view of the records that they are built from.

A kind of run that shows more than one row per method has a module with ``sections(view)``, see :class:`lutbench.kinds.Kind`.
If the module has ``OWN_ROWS = True``, its sections contain the rows of its runs too; else the rows are in the main table.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lutbench.errors import UserError
from lutbench.recipes.base import DatasetRecipe
from lutbench.recipes.downstream import EncoderSource
from lutbench.recipes.shares import at_share
from lutbench.recipes.suite import UNTRAINED, LoadedSuite, Row
from lutbench.record import Record, read_records, record_path
from lutbench.reference_curves import REFERENCE
from lutbench.report.entries import TableEntry, entries, row_of
from lutbench.report.figures import GREYS, PALETTE
from lutbench.smoke.mark import MARK, is_smoke

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lutbench.report.charts import Chart, Forest

ANY = -1
"""Stands for all columns."""

PIPELINE_ONLY = "These numbers show that the pipeline works. They are no evidence about the method."


@dataclass(frozen=True)
class Drawing:
    """A figure."""

    name: str
    """The name of its file, a PNG, below ``figures/SUITE``."""
    title: str
    draw: Callable[[], "Figure"]
    """Imports matplotlib, which takes a second, when it is called."""
    chart: "Callable[[], Chart] | None" = None
    """The same points for the HTML report, which draws them itself; None for pictures."""


@dataclass(frozen=True)
class Section:
    """A heading, a table, what explains it, and figures; each may be absent."""

    title: str = ""
    level: int = 2
    """Level of the heading; 1 is that of the suite's title."""
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The table for readers, as text; column headings have one or two lines."""
    marks: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """1 for the best value of a column and 2 for the second best, by row and column of the table."""
    legend: str = ""
    """Paragraphs below the table."""
    notation: str = ""
    """The beginning of the legend in files: the meaning of brackets, bold and underlined values, which a terminal does not show."""
    links: Mapping[str, str] = field(default_factory=dict)
    """The files that names in backticks in the legend link to, relative to the folder of the suite's tables."""
    figures: Sequence[Drawing] = ()
    name: str = ""
    """Name of the section's own files, ``NAME.tex`` and ``NAME.csv``; several sections may share them."""
    data: pd.DataFrame | None = None
    """The table for programs, with unrounded numbers: the contents of ``NAME.csv``."""
    files_only: bool = False
    """Whether it is too long or too wide for a terminal."""
    rows_behind: Mapping[tuple[int, int], Sequence[Row]] = field(default_factory=dict)
    """The rows of runs behind each cell, by row and column, or by row and :data:`ANY` for all cells of the row; for tables without a
    column ``runs``."""
    forest: "Forest | None" = None
    """The differences in the table, for the chart of the HTML report."""

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing but a heading."""
        return self.frame.empty and self.data is None and not (self.legend or self.figures or self.level == 1)

    @property
    def whole_legend(self) -> str:
        """The legend as files have it."""
        return " ".join(filter(None, (self.notation, self.legend)))


@dataclass(frozen=True)
class View:
    """A suite, its records, and the table entries that follow from them; with the names that tables use."""

    suite: LoadedSuite
    records: Mapping[str, Record]
    """All records by run name, including stale ones."""
    entries: Sequence[TableEntry]
    reference_dir: Path | None = None
    """The results to compare these with, if there are any."""

    @classmethod
    def read(cls, suite: LoadedSuite, results_dir: Path, reference_dir: Path | None = None) -> "View":
        """Read the records of a suite, each file once; the reference's are in ``reference`` below them if not given.

        Raises:
            UserError: if a record is damaged, or a smoke run's where the suite is not smoked, or as :func:`lutbench.report.entries.entries` does.
        """
        records = read_records(results_dir, suite.name)
        for name, record in records.items():
            if is_smoke(record.identity_inputs) != bool(suite.smoke):
                found, wanted = ("of a real run", "smoke runs") if suite.smoke else ("of a smoke run", "real runs")
                raise UserError(
                    f"{record_path(results_dir, suite.name, name)}: this record is {found}, but this folder is for {wanted}. Remove it, "
                    "or choose another folder with --results."
                )
        return cls(suite, records, entries(suite, records), reference_dir or results_dir / REFERENCE)

    @property
    def note(self) -> str:
        """A note that must accompany every number; empty if there is none."""
        if self.suite.smoke:
            return MARK
        return PIPELINE_ONLY if self.suite.config.kind == "pipeline" else ""

    def notes_of(self, entry: TableEntry) -> list[str]:
        """Return the notes that must accompany every number of an entry: the suite's and the dataset's."""
        return [note for note in (self.note, self.dataset(entry).note) if note]

    def dataset_notes(self, shown: Iterable[TableEntry]) -> list[str]:
        """Return the notes of the datasets of these entries, each once: ``Toys-C: Frost is drawn.``"""
        noted = {self.task_title(entry): self.dataset(entry).note for entry in shown}
        return [f"{title}: {note}" for title, note in noted.items() if note]

    def dataset(self, entry: TableEntry) -> DatasetRecipe:
        """Return the dataset that the runs of an entry read."""
        return next(r for r in self.suite.runs if (r.stage, r.task) == (entry.kind.stage, entry.task)).recipe.dataset

    @property
    def has_records(self) -> bool:
        """Whether there are any results, even stale ones."""
        return any(entry.runs or entry.stale for entry in self.entries)

    def of_kind(self, name: str) -> list[TableEntry]:
        """Return the entries of a kind of run, without rows that only studies have."""
        return [entry for entry in self.of_methods if entry.kind.name == name]

    @property
    def of_methods(self) -> list[TableEntry]:
        """The entries of the tables of methods, without rows that only studies have."""
        return [entry for entry in self.entries if entry.row not in self.suite.study_rows]

    def task_title(self, entry: TableEntry) -> str:
        """Return the name of a task in the tables; for a dataset of a table, with the table's title if the suite has several tables."""
        tables = getattr(self.suite.config, entry.kind.stage)
        table = entry.task if entry.task in tables else entry.task.split("/")[0]
        title: str = getattr(tables[table], "title", "") or table
        if table == entry.task:
            return title
        _, _, *probe = entry.task.split("/")  # of robustness, see lutbench.recipes.classifier_rows.PROBES
        dataset = ", ".join([self.dataset(entry).label, *(name.replace("-", " ") for name in probe)])
        return dataset if len(tables) == 1 else f"{title}, {dataset}"

    def figure_title(self, entry: TableEntry, about: str) -> str:
        """Return the title of a figure of an entry's task: suite, task, and what it shows."""
        return f"{self.suite.config.title}, {self.task_title(entry)}: {about}"

    def method_label(self, method: str) -> str:
        """Return the name of a method or a classifier in the tables."""
        if method in self._snapshots:
            of, share = self._snapshots[method]
            return f"{self.method_label(of)}, at {100 * share:g} %"
        row = row_of(self.suite, method)
        return (row and row.label) or ("Untrained" if row is None and method.startswith(UNTRAINED) else method)

    @cached_property
    def _snapshots(self) -> Mapping[str, tuple[str, float]]:
        """By row the method and the share of its pre-training of every encoder that was measured on the way."""
        found = {}
        for run in self.suite.runs:
            source = run.recipe.source
            if isinstance(source, EncoderSource) and source.at < 1:
                found[run.method] = run.method.removesuffix(at_share("", source.at)), source.at
        return found

    def colour(self, method: str) -> str:
        """Return the colour that a method or a classifier has in all figures of the suite; a grey for an untrained encoder."""
        studied = self.suite.studied
        rows = [*self.suite.config.method, *self.suite.config.classifier]
        rows = sorted(rows, key=lambda row: row in studied)  # what a study adds changes no other row's colour
        added = list(dict.fromkeys(run.method for run in self.suite.runs if run.method not in rows and run.method))
        among, colours = (rows, PALETTE) if method in rows else (added, GREYS)
        return colours[among.index(method) % len(colours)]

    def method_names(self, shown: Iterable[TableEntry]) -> dict[str, str]:
        """Return unique names of methods for places without an encoder column.

        These are their labels; if two are the same, with the encoder: LUT with ViT-S/16 and with ViT-B/16.
        """
        encoders = {entry.method: entry.encoder for entry in shown}
        names = {method: self.method_label(method) for method in encoders}
        for suffixes in (encoders, {method: method for method in encoders}):
            times = Counter(names.values())
            names = {m: f"{name}, {suffixes[m]}" if times[name] > 1 else name for m, name in names.items()}
        return names

    def pair_name(self, shown: Sequence[TableEntry], first: TableEntry, second: TableEntry) -> str:
        """Return ``LUT - MAE``, or ``LUT - MAE, ViT-B/16`` where the labels stand for several methods of the task."""
        names = self.method_names(shown)
        names = {method: names[method] for method in (first.method, second.method)}
        encoder = f", {first.encoder}"
        if all(name.endswith(encoder) for name in names.values()):
            names[first.method] = names[first.method].removesuffix(encoder)
        return " - ".join(names.values())


def by_task(shown: Iterable[TableEntry]) -> list[list[TableEntry]]:
    """Return entries, in their order, task by task."""
    return [list(of_task) for _, of_task in groupby(shown, key=lambda entry: entry.row[:2])]


def heading_lines(name: object) -> tuple[str, str]:
    """Return the upper and the lower line of a column's heading; the upper one is empty if there is one line only."""
    if isinstance(name, tuple):
        above, below = (str(part) for part in name)
        return (above, below) if below else ("", above)
    return "", str(name)


def not_run(view: View, among: Iterable[TableEntry]) -> str:
    """Return ``Not run: ImageNet-A; ImageNet-R with MAE, DeiT.`` for these entries; empty if all were run.

    If the name of a row contains a comma, semicolons separate the rows, and every task that was run in part has its own sentence.
    """
    missing: list[tuple[str, list[str]]] = []
    for of_task in by_task(among):
        ran = {entry.method for entry in of_task if entry.runs or entry.stale}
        names = [name for method, name in view.method_names(of_task).items() if method not in ran]
        if names:
            missing.append((view.task_title(of_task[0]), names if ran else []))
    commas = any("," in name for _, names in missing for name in names)
    tasks = [title + (f" with {('; ' if commas else ', ').join(names)}" if names else "") for title, names in missing]
    if commas:
        whole = "; ".join(title for title, names in missing if not names)
        return " ".join(
            f"Not run: {told}." for told in (whole, *(t for t, (_, n) in zip(tasks, missing, strict=True) if n)) if told
        )
    return f"Not run: {'; '.join(tasks)}." if tasks else ""


def directed(entry: TableEntry) -> str:
    """Return an entry's metric with an arrow for the better direction; a plain number, which has none, gets its unit instead."""
    if entry.unit != "%" or not entry.metric:
        return ", ".join(filter(None, (entry.metric, entry.unit if entry.metric else "")))
    return f"{entry.metric} {'↓' if entry.is_lower_better else '↑'}"


def signed(value: float, digits: int = 1) -> str:
    """Return a difference with its sign; zero is ``+0.0``."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
