"""A page that compares two results folders: mine and the reference, yesterday's and today's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lutbench.changes import changes
from lutbench.errors import UserError, listed
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record, read_records
from lutbench.record_search import suites_in
from lutbench.report.charts import Forest
from lutbench.report.comparisons import difference_of
from lutbench.report.html.page import KINDS, Block, Names, Page, block_of, contents_of, mark_of
from lutbench.report.html.rendering import render
from lutbench.report.html.repeat_commands import repeat_of_record, suite_or_none
from lutbench.report.html.run_details import RowDetails, run_details
from lutbench.report.reference import LEGEND, Agreement, agreement_frame, agreement_sentence, compare_with_reference
from lutbench.report.sections import ANY, Section
from lutbench.smoke.mark import is_smoke
from lutbench.workspace import Workspace

BOTH = ("A", "B")

OF_BOTH = LEGEND.replace("Yours minus the reference", "A minus B")
"""What the table says of its differences."""


@dataclass(frozen=True)
class _Side:
    """The records of one suite in one of the folders."""

    letter: str
    folder: Path
    records: Mapping[str, Record]
    options: str
    """The options with which commands name its folders."""


def comparison_page(
    first: Path,
    second: Path,
    suites: Sequence[str] = (),
    data: Path = Path("data"),
    runs: Path = Path("runs"),
) -> str:
    """Return a page that compares the records of two folders of results, suite by suite; of all that both have if none is named.

    A suite is a name, or the path of a suite file. ``data`` and ``runs`` are the folders that the commands on the page name.

    Raises:
        UserError: if a folder has no records, the two have no suite in common, or a record is damaged.
    """
    for folder in (first, second):
        if not suites_in(folder):
            raise UserError(
                f"{folder}: expected a results folder, with records in {folder / 'records'}; found none. Give two results folders, "
                "or the name of one suite."
            )
    shared = [name for name in suites_in(first) if name in suites_in(second)]
    chosen = {Path(name).stem if name.endswith(".toml") else name: name for name in suites or shared}
    if missing := [name for name in chosen if name not in shared]:
        raise UserError(f"Not both folders have records of {listed(missing)}. In both: {listed(shared) or 'no suite'}.")
    if not chosen:
        raise UserError(
            f"{first} has records of {listed(suites_in(first))}, and {second} of {listed(suites_in(second))}: they have no suite in common."
        )
    page, blocks, rows, kinds = Page(""), list[Block](), list[RowDetails](), dict[str, str]()
    for name, given in chosen.items():
        sides = [
            _Side(letter, folder, read_records(folder, name), Workspace(data, runs, folder).options)
            for letter, folder in zip(BOTH, (first, second), strict=True)
        ]
        suite = suite_or_none(given, (), first)
        kinds[name] = _kind(suite, sides)
        made = _rows(sides, suite, len(rows))
        rows += made.values()
        anchors = {(name, run, ""): row.anchor for run, row in made.items()}
        for section in _sections(name, sides):
            names = Names(anchors, links={run: row.anchor for run, row in made.items()})
            blocks.append(block_of(len(blocks) + 1, section, page, mark_of(kinds[name]), names))
    return render(
        "comparison.html.j2",
        title=f"{first} and {second}",
        folders=list(zip(BOTH, (str(first), str(second)), strict=True)),
        kinds=[(name, kind, *KINDS[kind]) for name, kind in kinds.items()],
        blocks=blocks,
        contents=contents_of(blocks),
        rows=rows,
        specs=page.specs,
        anchors={},
    )


def _kind(suite: LoadedSuite | None, sides: Sequence[_Side]) -> str:
    """Return the kind of a suite, as in :data:`KINDS`."""
    if any(is_smoke(record.identity_inputs) for side in sides for record in side.records.values()):
        return "smoke"
    return suite.config.kind if suite else "unknown"


def _sections(suite: str, sides: Sequence[_Side]) -> list[Section]:
    """Return what there is to say of a suite: the runs of one recipe, then those that cannot be compared, and those of one folder."""
    first, second = (side.records for side in sides)
    agreements = compare_with_reference(first, second)
    compared = {one.own.run for one in agreements}
    found = []
    if agreements:
        frame = agreement_frame(agreements).rename(columns={"yours": BOTH[0], "reference": BOTH[1], "": "verdict"})
        behind = {(row, ANY): [(suite, one.own.run, "")] for row, one in enumerate(agreements)}
        sentence = agreement_sentence(agreements).replace("with the reference", "with each other")
        found.append(
            Section(
                suite,
                frame=frame,
                legend=f"{sentence}\n{OF_BOTH}",
                name=suite,
                rows_behind=behind,
                forest=_forest(agreements),
            )
        )
    others = [name for name in first if name in second and name not in compared]
    lists = {
        "different settings, data or weights": [f"- `{name}`: {_why_not(first[name], second[name])}" for name in others]
    }
    for side, other in zip(sides, sides[::-1], strict=True):
        lists[f"only in {side.letter}"] = [f"- `{name}`" for name in side.records if name not in other.records]
    for about, lines in lists.items():
        if lines:
            title, level = (f"{suite}: {about}", 3) if found else (suite, 2)
            found.append(Section(title, level, legend="\n".join(lines)))
    return found


def _forest(agreements: Sequence[Agreement]) -> Forest | None:
    rows = [
        difference_of(
            one.difference,
            one.measured.unit,
            one.own.task,
            one.measured.metric,
            f"{one.own.method}, seed {one.own.seed}",
            [one.own.run],
        )
        for one in agreements
        if one.difference is not None
    ]
    return Forest(rows, "A minus B. Bars: 95 % intervals over images.") if rows else None


def _why_not(one: Record, other: Record) -> str:
    """Return why two records of one name cannot be compared: ``epochs changed from 100 to 50``."""
    inputs = [
        {"revision": record.identity_inputs["revision"], **record.identity_inputs["recipe"]} for record in (other, one)
    ]
    if changed := changes(*inputs):
        return f"from B to A, {listed(changed)}"
    data = one.identity_inputs.get("data") != other.identity_inputs.get("data")
    return "different data" if data else "they start from runs of different recipes"


def _rows(sides: Sequence[_Side], suite: LoadedSuite | None, before: int) -> dict[str, RowDetails]:
    """Return what is behind every run of a suite, in both folders, by name; ``before`` are those of other suites, which have ids too."""
    names = list(dict.fromkeys(name for side in sides for name in side.records))
    found = {}
    for number, name in enumerate(names, before + 1):
        details = []
        for side in sides:
            if (record := side.records.get(name)) is None:
                continue
            anchors = {
                (record.suite, run): f"run-{side.letter}-{before + names.index(run) + 1}" for run in side.records
            }
            known = {one.identity: one for one in side.records.values()}
            repeat = repeat_of_record(record, known, suite, side.folder, side.options)
            made = run_details(record, side.folder, anchors, known, repeat)
            details.append(replace(made, name=f"{side.letter}: {made.name}"))
        found[name] = RowDetails(f"row-{number}", name, (), details)
    return found
