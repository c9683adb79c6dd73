"""Tables of shifted test sets: every method on every set, every corruption, curves, and all measurements.

Sets and metrics are in rows, with one row per method, published beside measured values: the paper's sets have about thirty printed metrics,
too many for columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from lutbench.record import Record
from lutbench.report.charts import Chart
from lutbench.report.comparisons import OVER_SEEDS, compare, interval_points, on_same_images, points
from lutbench.report.entries import TableEntry, over_runs, run_ids
from lutbench.report.sections import ANY, Drawing, Section, View, by_task, directed, not_run
from lutbench.report.values import interval_legend, value_legend, value_table, wide_section
from robustness.condition_outcomes import RobustnessOutcomes
from robustness.curves import Methods, Runs, occlusion_chart, occlusion_figure, severity_chart, severity_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN_ROWS = True
"""The main table leaves the rows of robustness runs to the sections of this module."""

NAME = "robustness"
"""Of the kind of run, and of the files robustness.csv and robustness.tex."""

LEGEND = (
    "Higher (↑) or lower (↓) is better. After the metric's name follow the part of the test set and the protocol: among which classes the "
    "classifier chooses, and how images were resized. Other protocols and severities are in robustness.csv."
)
CORRUPTIONS_LEGEND = (
    "Top-1 error in percent (lower is better), mean over severities, with its 95 % interval: {}. Extra corruptions are not part "
    "of the mean. Differences are in percentage points; their intervals are percentiles of resamples of the images, the same "
    "for both methods."
)
SEVERITY = "accuracy against severity"
OCCLUSION = "accuracy with patches dropped or shuffled"
COLUMNS = [
    "suite", "table", "set", "method", "encoder", "seed", "metric", "value", "low", "high", "n", "interval", "run", "note",
]  # fmt: skip
"""Of robustness.csv, also where nothing was measured."""


def sections(view: View) -> list[Section]:
    """Return the table of all sets, those of corrupted sets, and the curves.

    Methods that were not run on a set, and of which nothing was published there, are only named as not run.
    """
    robust = view.of_kind(NAME)
    if not robust:
        return []
    shown = [entry for entry in robust if entry.is_printed]
    table = value_table(view, shown)
    if shown:
        table["metric"] = [directed(entry) for entry in shown]
    legend = [
        *(["\n".join([value_legend(view, shown), LEGEND, *view.dataset_notes(shown)])] if shown else []),
        not_run(view, robust),
    ]
    occluded = _measured_sets(view, "occlusion")
    drawings = [_drawing(view, of, "occlusion", OCCLUSION, occlusion_figure, occlusion_chart) for of in occluded]
    return [
        Section(
            "Shifted test sets",
            frame=table,
            legend="\n\n".join(filter(None, legend)),
            name=NAME,
            data=every_measurement(view),
        ),
        wide_section(view, shown),
        *corruption_sections(view),
        Section("Occlusion", figures=drawings, files_only=True),
    ]


def corruption_sections(view: View) -> list[Section]:
    """Return for every corrupted set that was measured a row per corruption, then their mean, then the extra ones apart.

    A column per method, and the difference of the suite's first pair that was measured on the same images. Methods of
    other encoders have a table of their own: the paper's together would be too wide.
    """
    sets = _measured_sets(view, "corruptions")
    intervals = interval_legend(entry.measured for of_set in sets for entry in of_set)
    made = [Section("Corruptions", legend=CORRUPTIONS_LEGEND.format(intervals))] if sets else []
    for of_set in sets:
        title, encoders = view.task_title(of_set[0]), list(dict.fromkeys(entry.encoder for entry in of_set))
        for encoder in encoders:
            methods = {entry.method: entry for entry in of_set if entry.encoder == encoder}
            heading = ", ".join([title, *([encoder] if len(encoders) > 1 else [])])
            table = _corruption_table(view, methods)
            over_seeds = any(str(column).endswith("over seeds") for column in table)
            legend = " ".join([*([OVER_SEEDS] if over_seeds else []), *view.dataset_notes(methods.values())])
            behind = {(row, ANY): [entry.row for entry in methods.values()] for row in range(len(table))}
            made.append(Section(f"{heading}: top-1 error, %", 3, table, {}, legend, name=NAME, rows_behind=behind))
        drawing = _drawing(view, of_set, "severity", SEVERITY, severity_figure, severity_chart)
        made[-1] = replace(made[-1], figures=[drawing])  # of all encoders
    return made


def every_measurement(view: View) -> pd.DataFrame:
    """Return all protocols, parts and severities of the records that count, unrounded: a row per measurement."""
    records = {r.run: (entry, r) for entry in view.of_kind(NAME) for r in entry.runs}
    rows = []
    for entry, r in records.values():
        table, dataset = entry.task.split("/", 1)
        rows += [
            {
                "suite": view.suite.name, "table": table, "set": dataset, "method": entry.method,
                "encoder": entry.encoder, "seed": r.seed, **measurement.model_dump(),
                "run": run_ids([r]), "note": " ".join(view.notes_of(entry)),
            }
            for measurement in r.measurements
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def _measured_sets(view: View, kind: str) -> list[list[TableEntry]]:
    """Return the entries with records of each set of one kind."""
    measured = [entry for entry in view.of_kind(NAME) if entry.runs and _outcomes(entry)[0].kind == kind]
    return by_task(measured)


def _outcomes(entry: TableEntry) -> list[RobustnessOutcomes]:
    return [r.outcomes for r in entry.runs]


def _drawing(
    view: View,
    of_set: Sequence[TableEntry],
    ending: str,
    about: str,
    draw: "Callable[[str, Methods, str, Sequence[str]], Figure]",
    chart: Callable[[Methods, Sequence[str], Runs], Chart],
) -> Drawing:
    names, entries = view.method_names(of_set), {entry.method: entry for entry in of_set}
    title = view.figure_title(of_set[0], about)
    methods = [(names[method], _outcomes(entry)) for method, entry in entries.items()]
    colours = [view.colour(method) for method in entries]
    runs = [[record.run for record in entry.runs] for entry in entries.values()]
    file = f"{of_set[0].task.replace('/', '-')}-{ending}.png"
    note = "\n".join(view.notes_of(of_set[0]))
    return Drawing(file, title, lambda: draw(title, methods, note, colours), lambda: chart(methods, colours, runs))


def _corruption_table(view: View, methods: dict[str, TableEntry]) -> pd.DataFrame:
    of_set = list(methods.values())
    names = view.method_names(of_set)
    pairs = ((methods[one], methods[other]) for one, other in view.suite.config.compare if {one, other} <= set(methods))
    pair = next((pair for pair in pairs if on_same_images(*pair)), None)
    rows = []
    for label, metric in _corruption_rows([entry.runs[0] for entry in of_set]):
        if label == "frost" and view.dataset_notes(of_set):
            label = "frost, drawn"
        row = {"corruption": label} | {names[method]: _value(entry.runs, metric) for method, entry in methods.items()}
        if pair and all(entry.runs[0].measured(metric) for entry in pair):
            compared = compare(*pair, metric)
            name = view.pair_name(of_set, *pair)
            row[name] = points(compared.difference, compared.interval)
            if compared.seed_interval:
                row[f"{name}, over seeds"] = interval_points(compared.seed_interval)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _corruption_rows(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return label and metric of every row, of all that any of the records has."""
    main, extra, means = dict[str, str](), dict[str, str](), dict[str, str]()
    for record in records:
        for corruption in record.outcomes.by_amount():
            label, is_extra = corruption.replace("_", " "), corruption in record.outcomes.extra
            (extra if is_extra else main)[f"{label}, extra" if is_extra else label] = f"error, {corruption}"
        named = (m.metric for m in record.measurements if m.metric.startswith("mean error, "))
        means |= {name.replace("mean error", "mean"): name for name in named}
    ahead = dict(list(means.items())[: 1 if main else 0])  # of the corruptions that are not extra
    return list((main | ahead | extra | means).items())


def _value(records: Sequence[Record], metric: str) -> str:
    measured = [m for record in records if (m := record.measured(metric))]
    return over_runs(measured).text() if measured else ""
