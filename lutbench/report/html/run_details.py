"""What is behind a number: its chain from data and weights, its code and machine, and the command that repeats it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from lutbench.errors import UserError
from lutbench.lineage import Link, lineage, roots_of
from lutbench.recipes.suite import Row
from lutbench.record import Record
from lutbench.report.evidence import unlike_defaults
from lutbench.report.html.repeat_commands import Repeat, repeat_command
from lutbench.report.sections import View
from lutbench.report.values import row_numbers, took_text

MOST = 40
"""Measurements that are shown of a run; robustness runs have hundreds, which their CSV has."""

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ChainStep:
    """A step from data and weights to a number."""

    kind: str
    name: str
    facts: Facts
    anchor: str = ""
    """The id of the details of its run; empty if the page has none."""


@dataclass(frozen=True)
class RunDetails:
    """A run behind numbers."""

    anchor: str
    name: str
    measured: Sequence[tuple[str, str]]
    """Metric and value, with its interval; of many the first."""
    further: int
    """How many more were measured."""
    chain: Sequence[ChainStep]
    made_by: Facts
    settings: Sequence[tuple[str, str, str]]
    """Name, value and default of settings that are not the default."""
    hashes: Facts
    repeat: Repeat
    """How to repeat it, with what it starts from."""
    show: str
    """The command that shows all of it."""


@dataclass(frozen=True)
class RowDetails:
    """The runs of one row of the tables: of one method on one task, all seeds."""

    anchor: str
    title: str
    stale: Sequence[str]
    runs: Sequence[RunDetails]


def row_anchors(view: View) -> dict[Row, str]:
    """Return the id of every row of runs, by its footnote in the tables; then those of pre-trainings, which have none."""
    pretrained = [run.row for run in view.suite.runs if run.stage == "pretrain" and run.name in view.records]
    return {row: f"row-{number}" for row, number in row_numbers(view).items()} | {
        row: f"pretrain-{number}" for number, row in enumerate(dict.fromkeys(pretrained), 1)
    }


def run_anchors(view: View) -> dict[str, str]:
    """Return the id of every run that has a record."""
    return {name: f"run-{number}" for number, name in enumerate(view.records, 1)}


def row_details(view: View, results_dir: Path, options: str) -> list[RowDetails]:
    """Return what is behind every row that has records; then the pre-trainings. ``options`` are those of commands for the folders."""
    anchors, runs = row_anchors(view), {(view.suite.name, name): anchor for name, anchor in run_anchors(view).items()}
    known = {record.identity: record for record in view.records.values()}

    def details(record: Record) -> RunDetails:
        return run_details(record, results_dir, runs, known, Repeat(repeat_command(view.suite, record.run, options)))

    found: dict[Row, RowDetails] = {}
    shown: set[str] = set()
    for entry in view.entries:
        if entry.row not in found and (entry.runs or entry.stale):
            title = f"{view.task_title(entry)}: {view.method_label(entry.method)}, {entry.encoder}"
            found[entry.row] = RowDetails(
                anchors[entry.row], title, entry.stale, [details(record) for record in entry.runs]
            )
            shown |= {record.run for record in entry.runs}
    others = [record for name, record in view.records.items() if name not in shown]
    before: dict[Row, list[RunDetails]] = {}
    rest = []
    for record in others:
        row = (record.stage, record.task, record.method)
        if record.stage == "pretrain" and row in anchors:
            before.setdefault(row, []).append(details(record))
        else:
            rest.append(details(record))
    rows = [
        *(RowDetails(anchors[row], f"Pre-training: {row[1]}", (), runs) for row, runs in before.items()),
        *found.values(),
        RowDetails("other-records", "Records that are in no table", (), rest),
    ]
    return [row for row in rows if row.runs or row.stale]


def run_details(
    record: Record,
    results_dir: Path,
    anchors: Mapping[tuple[str, str], str],
    known: Mapping[str, Record],
    repeat: Repeat,
) -> RunDetails:
    """Return what is behind a run's numbers.

    ``anchors`` are the ids of the runs that the page has details of, by suite and run, ``known`` records by identity that were read
    already, and ``repeat`` is how to repeat the run.
    """
    where = "" if results_dir == Path("results") else f" --results {quote(str(results_dir))}"
    return RunDetails(
        anchor=anchors[record.suite, record.run],
        name=record.run,
        measured=[(m.metric, m.text(m.unit)) for m in record.measurements[:MOST]],
        further=max(0, len(record.measurements) - MOST),
        chain=[_step(link, anchors, known) for link in lineage(record, roots_of(record, results_dir), known)],
        made_by=list(_made_by(record)),
        settings=_settings(record),
        hashes=list(_hashes(record)),
        repeat=repeat,
        show=f"lutbench show {quote(f'{record.suite}/{record.run}')}{where}",
    )


def _step(link: Link, anchors: Mapping[tuple[str, str], str], known: Mapping[str, Record]) -> ChainStep:
    suite, _, name = link.name.partition("/")
    facts, record = dict(link.facts), known.get(link.facts.get("identity", ""))
    if record is not None:
        facts |= {"code": str(record.code), "machine": str(record.hardware)}
    return ChainStep(link.kind, link.name, list(facts.items()), anchors.get((suite, name), ""))


def _made_by(record: Record) -> Iterator[tuple[str, str]]:
    yield "code", record.code.details
    if record.code.sources:
        yield "sources", f"{len(record.code.sources)} source files, with hashes in the record"
    yield "machine", record.hardware.details
    yield "packages", ", ".join(f"{name} {version}" for name, version in record.packages.items())
    yield "took", took_text(record)
    yield "finished", record.created
    if record.made_as:
        yield "reused from", record.made_as


def _settings(record: Record) -> list[tuple[str, str, str]]:
    """Return the settings that are not the suite's defaults; none of a record with settings of another version."""
    try:
        return [
            (name, str(value) or "none", str(default) or "none")
            for name, (value, default) in unlike_defaults(record).items()
        ]
    except (UserError, ValueError):
        return []


def _hashes(record: Record) -> Iterator[tuple[str, str]]:
    yield "identity", record.identity
    if record.checkpoint:
        yield "weights, sha256", record.checkpoint
    for kept in record.files:
        yield f"{kept.file}, sha256", kept.sha256
