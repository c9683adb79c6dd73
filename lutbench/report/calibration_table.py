"""Calibration of classifiers: ECE and NLL of every method on every task, and of pairs of methods.

They have separate sections, because they would double the rows of the main table and of the comparisons, and no method is chosen by them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from lutbench.evaluate.calibration import BINS, ECE, NLL
from lutbench.evaluate.outcomes import Measurement
from lutbench.recipes.suite import Row
from lutbench.report.comparisons import compare, interval_points, on_same_images, points
from lutbench.report.entries import TableEntry, over_runs, run_ids
from lutbench.report.sections import ANY, Section, View, by_task
from lutbench.report.values import interval_legend, row_numbers, seeds_text

NAME = "calibration"
"""Of the files calibration.csv and calibration.tex."""

COLUMNS = [
    "suite",
    "task",
    "method",
    "encoder",
    "metric",
    "value",
    "low",
    "high",
    "unit",
    "interval",
    "seeds",
    "runs",
    "note",
]
"""Of calibration.csv."""

LEGEND = (
    f"Lower is better (↓). ECE, expected calibration error, in percent: images are put into {BINS} bins of equal width by the confidence of "
    "the classifier; ECE is the mean over bins, weighted by their number of images, of the gap between mean confidence and accuracy (Guo et "
    "al. 2017). NLL, negative log-likelihood: the mean of -ln of the probability of the correct class; 0 is the best. 95 % intervals: {}. "
    "With few images ECE is too high; its interval is corrected for that, the value is not, so the value may be outside its interval."
)
SMOOTHED = (
    "Trained with label smoothing, mixup or cutmix: {}. These lower the confidence of a classifier and raise ECE and NLL with any "
    "encoder, so compare such tasks with each other, not with a probe."
)
VOTES = "For k-NN, the confidence is the share of the votes; it has no NLL, which would be infinite for a label without votes."
PAIRS = (
    "The first method minus the second: ECE in points, NLL as it is. Intervals: percentiles of resamples of the images, the same for both "
    "methods. With several seeds, the mean over seeds."
)
SEEDS = "Over seeds or draws: Student's t interval of the differences between runs with the same seed and draw."


class _Calibrated(NamedTuple):
    """A method on a task, by one ECE: robustness datasets have one for each of their parts."""

    entry: TableEntry
    metric: str
    part: str
    measured: Mapping[str, Measurement]
    """ECE, and NLL where it was measured: the mean over seeds."""


def calibration_sections(view: View) -> list[Section]:
    """Return the table of every classifier whose records keep how sure it was, and that of the suite's pairs; none without any."""
    rows = [row for of_task in by_task(view.of_methods) for row in _of_task(of_task)]
    if not rows:
        return []
    numbers = row_numbers(view)
    table = pd.DataFrame(
        [
            {
                "task": _task(view, row),
                "method": view.method_label(row.entry.method),
                "encoder": row.entry.encoder,
                "ECE, % ↓": row.measured[ECE].text(),
                "NLL ↓": row.measured[NLL].text() if NLL in row.measured else "",
                "seeds": seeds_text(row.entry),
                "runs": f"[{numbers[row.entry.row]}]",
            }
            for row in rows
        ]
    )
    shown = [row.entry for row in rows]
    smoothed = dict.fromkeys(view.task_title(entry) for entry in shown if _is_smoothed(view, entry))
    legend = [
        LEGEND.format(interval_legend(m for row in rows for m in row.measured.values())),
        *([SMOOTHED.format("; ".join(smoothed))] if smoothed else []),
        *([VOTES] if any(entry.kind.name == "knn" for entry in shown) else []),
        *view.dataset_notes(shown),
    ]
    return [
        Section("Calibration", frame=table, legend=" ".join(legend), name=NAME, data=_tidy(view, rows)),
        _pairs(view, rows),
    ]


def _of_task(of_task: Sequence[TableEntry]) -> Iterator[_Calibrated]:
    """Yield the rows of one task, metric by metric, method by method; a record of before there were scores has none."""
    entries = list({entry.row: entry for entry in of_task if entry.runs}.values())
    named = dict.fromkeys(m.metric for entry in entries for r in entry.runs for m in r.measurements)
    for metric in [name for name in named if name == ECE or name.startswith(f"{ECE}, ")]:
        for entry in entries:
            found = {ECE: [m for r in entry.runs if (m := r.measured(metric))]}
            found |= {NLL: [m for r in entry.runs if (m := r.measured(NLL))]} if metric == ECE else {}
            if len(found[ECE]) == len(entry.runs):
                seeds = [r.seed for r in entry.runs]
                means = {name: over_runs(of, seeds) for name, of in found.items() if len(of) == len(seeds)}
                yield _Calibrated(entry, metric, metric.removeprefix(ECE), means)


def _task(view: View, row: _Calibrated) -> str:
    return view.task_title(row.entry) + row.part


def _is_smoothed(view: View, entry: TableEntry) -> bool:
    """Return whether a classifier was trained on labels that are not the images' alone."""
    planned = view.suite.run(entry.runs[0].run)
    trained = view.suite.run(planned.needs) if planned.needs and entry.kind.starts_from == "classifier" else planned
    return any(getattr(trained.recipe, name, 0) for name in ("label_smoothing", "mixup", "cutmix"))


def _pairs(view: View, rows: Sequence[_Calibrated]) -> Section:
    """Return the differences of the suite's pairs of methods that were measured on the same images."""
    found = {(row.entry.row[:2], row.metric, row.entry.method): row for row in rows}
    made: list[dict[str, str]] = []
    behind: dict[tuple[int, int], list[Row]] = {}
    for task, metric in dict.fromkeys(key[:2] for key in found):
        of_task = [row.entry for key, row in found.items() if key[:2] == (task, metric)]
        for methods in view.suite.config.compare:
            pair = [found[task, metric, method] for method in methods if (task, metric, method) in found]
            if len(pair) != 2 or not on_same_images(pair[0].entry, pair[1].entry):
                continue
            one, other = (row.entry for row in pair)
            cells = {"task": _task(view, pair[0]), "pair": view.pair_name(of_task, one, other)}
            for name in (ECE, NLL):
                if all(name in row.measured for row in pair):
                    compared = compare(one, other, metric if name == ECE else NLL)
                    unit, title = pair[0].measured[name].unit, name.split(",")[0]
                    cells[title] = points(compared.difference, compared.interval, unit)
                    cells[f"{title}, over {compared.over}"] = interval_points(compared.seed_interval, unit)
            behind[len(made), ANY] = [one.row, other.row]
            made.append(cells | {"images": str(compared.images)})
    table = pd.DataFrame(made).fillna("")
    table = table.loc[:, (table != "").any()]
    legend = " ".join([PAIRS, *([SEEDS] if any(", over " in str(column) for column in table) else [])])
    if not made:
        return Section()
    return Section("Calibration, pairs on the same images", 3, table, legend=legend, name=NAME, rows_behind=behind)


def _tidy(view: View, rows: Sequence[_Calibrated]) -> pd.DataFrame:
    """Return a row per measurement, unrounded, for programs."""
    return pd.DataFrame(
        [
            {
                "suite": view.suite.name, "task": row.entry.task, "method": row.entry.method, "encoder": row.entry.encoder,
                **m.model_dump(include=set(COLUMNS)), "metric": row.metric if name == ECE else NLL,
                "seeds": row.entry.seeds, "runs": run_ids(row.entry.runs),
                "note": " ".join(view.notes_of(row.entry)),
            }
            for row in rows
            for name, m in row.measured.items()
        ],
        columns=COLUMNS,
    )  # fmt: skip
