"""Tables and figures from records alone: no data, no GPU, and no number typed by hand."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lutbench.errors import listed
from lutbench.files import whole_file
from lutbench.kinds import KINDS
from lutbench.progress import console
from lutbench.report.calibration_table import calibration_sections
from lutbench.report.comparisons import comparison_sections
from lutbench.report.compute_table import compute_section
from lutbench.report.decided import decided_sections
from lutbench.report.drawn import figures_key, is_drawn, note_drawn
from lutbench.report.entries import TableEntry, run_ids
from lutbench.report.figures import write_figure
from lutbench.report.loss_curves import loss_sections
from lutbench.report.render import csv, latex, markdown, terminal
from lutbench.report.sections import Section, View, not_run
from lutbench.report.studies import study_sections
from lutbench.report.values import footnotes, sources, value_legend, value_table, wide_section
from lutbench.smoke.mark import MARK
from lutbench.sources import differing

FILES = {"main.md"} | {
    f"{name}.{end}"
    for name in ("main", "wide", "calibration", "comparisons", "compute", "decided", *KINDS)
    for end in ("csv", "tex")
}
"""The files in a suite's folder of tables, besides those of studies; other files in it are left alone."""

STUDIES = tuple(f"{kind}-*.{end}" for kind in ("sweep", "at") for end in ("csv", "tex"))
"""The files of studies, whatever they are named, such as ``sweep-weight.csv``."""

OTHER_CODE = "Finished with different code"


def all_sections(view: View) -> list[Section]:
    """Return what a suite has to say; the first section is its title. Empty ones are left out."""
    config, reports = view.suite.config, {run.kind.name: run.kind.report for run in view.suite.runs}
    apart = {name for name, report in reports.items() if getattr(report, "OWN_ROWS", False)}
    main = [entry for entry in view.of_methods if entry.kind.name not in apart]
    runs, stale = footnotes(view)
    links = {record.run: f"../../records/{record.suite}/{record.run}.json" for record in view.records.values()}
    sections = [
        Section(config.title, 1, legend=view.note),
        Section(legend=config.about.strip(), files_only=True),
        *(decided := decided_sections(view)),
        replace(_main(view, main), title="All tasks" if any(section.title for section in decided) else ""),
        wide_section(view, main),
        *(section for report in dict.fromkeys(reports.values()) if report for section in report.sections(view)),
        *study_sections(view),
        *calibration_sections(view),
        *comparison_sections(view),
        compute_section(view),
        *loss_sections(view),
        Section("Runs", legend="\n".join(runs), links=links, files_only=True),
        Section("Stale records", legend="\n".join(stale)),
        Section(OTHER_CODE, legend=other_code(view)),
        Section("Sources", legend="\n".join(f"- [{letter}] {text}: {told}" for letter, text, told in sources(view))),
    ]
    told = [section for section in sections if not section.is_empty]
    return [_smoked(section) for section in told] if view.suite.smoke else told


def _smoked(section: Section) -> Section:
    """Return a section of a smoked suite, marked where it has numbers: the table by its title, which files share, and every row of data."""
    data = section.data
    if data is not None and "note" not in data:
        data = data.assign(note=MARK)
    if section.frame.empty or section.level == 1:
        return replace(section, data=data)
    title = f"{section.title} ({MARK.rstrip('.')})" if section.title else MARK.rstrip(".")
    return replace(section, title=title, data=data)


def _main(view: View, among: Sequence[TableEntry]) -> Section:
    """Return the table of the tasks, with a line for the rows that it leaves out because nothing is known of them."""
    shown = [entry for entry in among if entry.is_printed]
    left_out = not_run(view, among) if view.has_records else ""  # without any, show_tables says what to run
    if left_out and view.suite.config.extends:
        left_out += (
            f" `lutbench run {view.suite.given}` also copies finished runs of {listed(view.suite.config.extends)}."
        )
    legend = "\n\n".join(filter(None, (value_legend(view, shown), left_out)))
    return Section(frame=value_table(view, shown), legend=legend, name="main", data=_tidy(view))


def other_code(view: View) -> str:
    """Return which runs finished with source files that have changed since, and which runs start from one of them."""
    made: dict[tuple[str, ...], list[str]] = {}
    concerned: set[str | None] = set()
    for planned in view.suite.runs:  # each after the one that it starts from
        if planned.name not in view.records:
            continue
        others = differing(view.records[planned.name].code.sources, planned)
        if others or planned.needs in concerned:
            made.setdefault(tuple(others), []).append(planned.name)
            concerned.add(planned.name)
    lines = []
    for files, names in made.items():
        told = [f"`{pattern}`" for pattern in _patterns(names, view.records)]
        count = f" ({len(names)} runs)" if len(names) > len(told) else ""
        lines.append(f"- {listed(told, 6)}{count}: {listed(files) or 'start from one of these runs'}")
    return "\n".join([*lines, f"\n`lutbench run {view.suite.given} --again NAME` repeats a run."] if lines else [])


def _patterns(names: Sequence[str], among: Iterable[str]) -> list[str]:
    """Return names of runs, and ``downstream/near/*`` in place of several where they are all of ``among`` that begin so."""
    found = dict[str, None]()
    for name in names:
        parts = name.split("/")
        for length in range(1, len(parts)):
            start = "/".join(parts[:length]) + "/"
            alike = [other for other in among if other.startswith(start)]
            if len(alike) > 1 and set(alike) <= set(names):
                found[f"{start}*"] = None
                break
        else:
            found[name] = None
    return list(found)


def build_tables(view: View, sections: Sequence[Section]) -> dict[str, str]:
    """Return file name to text: Markdown of all sections for people; of each table CSV for programs, LaTeX for papers.

    Empty without records.
    """
    if not view.has_records:
        return {}
    texts = {"main.md": markdown(sections, f"../../figures/{view.suite.name}")}
    for name in dict.fromkeys(section.name for section in sections if section.name):
        chosen = [section for section in sections if section.name == name]
        texts |= {
            f"{name}.csv": csv(chosen),
            f"{name}.tex": latex(chosen, view.suite.config.title, view.note),
        }
    return {name: text for name, text in texts.items() if text}


def _names(sections: Sequence[Section]) -> set[str]:
    """Return the names of the files that :func:`build_tables` makes of sections, where there are records."""
    tables = {f"{section.name}.tex" for section in sections if section.name and not section.frame.empty}
    return (
        {"main.md"}
        | tables
        | {f"{section.name}.csv" for section in sections if section.name and section.data is not None}
    )


def write_tables(view: View, sections: Sequence[Section], results_dir: Path) -> None:
    """Write the tables to ``tables/SUITE``, and to ``figures/SUITE`` what they show. A table of no records is removed.

    Raises:
        UserError: on a full disk.
    """
    folder = results_dir / "tables" / view.suite.name
    texts = build_tables(view, sections)
    for name, text in texts.items():
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for name in _files(folder) - set(texts):
        (folder / name).unlink(missing_ok=True)
    drawings = [drawing for section in sections for drawing in section.figures]
    key = figures_key(view) if drawings else ""
    for drawing in drawings:
        path = _figures(view, results_dir) / drawing.name
        if not is_drawn(path, key):
            write_figure(path, drawing.draw())
            note_drawn(path, key)


def _files(folder: Path) -> set[str]:
    """Return what a suite's folder of tables may hold of ours: of studies what is there, also of those that the suite had once."""
    return FILES | {path.name for pattern in STUDIES for path in folder.glob(pattern)}


def check_tables(view: View, sections: Sequence[Section], results_dir: Path) -> list[str]:
    """Return a unified diff for every table that does not match its records, and every figure that is missing.

    Empty if there are none. The contents of figures are not compared: their pixels depend on matplotlib's version. Nor is whether the
    code has changed since, which does not depend on the records.
    """
    folder = results_dir / "tables" / view.suite.name
    expected = build_tables(view, [section for section in sections if section.title != OTHER_CODE])
    present = {
        name: (folder / name).read_text(encoding="utf-8") for name in _files(folder) if (folder / name).is_file()
    }
    differences = []
    for name in sorted({*expected, *present}):
        old, new = _of_records(present.get(name, "")), expected.get(name, "")
        if old == new:
            continue
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"{name} in the folder", f"{name} from the records", lineterm=""
        )
        differences.append("\n".join(lines))
    figures = [_figures(view, results_dir) / drawing.name for section in sections for drawing in section.figures]
    return differences + [f"{path} is missing" for path in figures if not path.is_file()]


def _of_records(text: str) -> str:
    """Return a table as it was written without what it says of the code, which may have been edited since."""
    return (
        re.sub(rf"^## {OTHER_CODE}\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL).rstrip("\n") + "\n"
        if text
        else ""
    )


def show_tables(view: View, sections: Sequence[Section], results_dir: Path) -> None:
    """Print the tables to the terminal, published values also where nothing was measured."""
    console.print(terminal(sections, console.width))
    if view.has_records:
        files = sorted(_names(sections))
        folder = results_dir / "tables" / view.suite.name
        console.print(f"Runs, sources and unrounded numbers: {folder}: {', '.join(files)}")
        if any(section.figures for section in sections):
            console.print(f"Figures: {_figures(view, results_dir)}")
    else:
        stages = " ".join(dict.fromkeys(run.stage for run in view.suite.runs))
        where = "" if results_dir == Path("results") else f" --results {results_dir}"
        console.print(f"There are no results yet. Run: nox -s {stages} results -- {view.suite.given}{where}")


def _figures(view: View, results_dir: Path) -> Path:
    return results_dir / "figures" / view.suite.name


def _tidy(view: View) -> pd.DataFrame:
    """Return a row per entry with a value, unrounded, for programs."""
    table = pd.DataFrame(
        [
            {
                "suite": view.suite.name, "task": entry.task, "method": entry.method, "encoder": entry.encoder,
                "metric": entry.metric, **dict.fromkeys(("value", "low", "high")),
                **(entry.measured.model_dump(include={"value", "low", "high"}) if entry.measured else {}),
                "seeds": entry.seeds, **({"draws": str(entry.draws)} if entry.draws > 1 else {}), "published": entry.published.value if entry.published else None,
                "published in": entry.published.source if entry.published else "",
                "published protocol": f"{entry.published.protocol}: {entry.published.settings}" if entry.published else "",
                "published recipe": (entry.published.other_recipe or "the run's") if entry.published else "",
                "runs": run_ids(entry.runs),
                "note": " ".join(view.notes_of(entry)),
            }
            for entry in view.entries
        ]
    )  # fmt: skip
    return table if table.empty else table[table["seeds"] > 0]  # its columns are named even if there is none
