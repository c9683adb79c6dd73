"""Pairs of methods on the same images: what of a difference could be these images' doing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lutbench.evaluate.outcomes import PER_CLASS
from lutbench.evaluate.statistics import RESAMPLES, Interval, Paired, Resampled
from lutbench.recipes.suite import LoadedSuite
from lutbench.report.entries import TableEntry
from lutbench.report.names import directed, pair_name, task_title
from robustness.condition_outcomes import RobustnessOutcomes

NOT_OTHER_RUNS = "Interval and p tell what other images would change, not what another training run would."
PAIRED = (
    "Difference in points with its 95 % interval (Agresti and Min); images on which only the first or only the second "
    "method is right (of several seeds, right in more of them); p of the exact McNemar test. " + NOT_OTHER_RUNS
)
RESAMPLED = (
    "Difference in points, of a segmentation in mIoU{by_class} (of several seeds, their mean), with the percentiles of "
    f"{RESAMPLES} resamples of the images, the same for both methods, as its 95 % interval; p, two-sided, from the same, "
    f"{2 / RESAMPLES:.2g} at the least. " + NOT_OTHER_RUNS
)

Seeds = Sequence[Any]
"""Outcomes of one kind, one per seed."""


class Compared(NamedTuple):
    """The pairs that are compared in one way."""

    table: pd.DataFrame
    legend: str


def comparison_tables(suite: LoadedSuite, made: list[TableEntry], results_dir: Path) -> list[Compared]:
    """The suite's pairs of methods on the same images, in a table for each way of comparing that has rows.

    A pair is left out where the two were not run with the same seeds, or not measured on the same images. Only a table
    with shifted sets has a column for the metric, of which these may have several.
    """
    rows: dict[type, list[dict[str, str]]] = {kind: [] for kind in _LEGENDS}
    named = dict.fromkeys(_LEGENDS, False)
    by_class = False
    for task in dict.fromkeys(cell.task for cell in made):
        encoders = {cell.method: cell.encoder for cell in made if cell.task == task}
        of_task = [cell for cell in made if cell.task == task and cell.runs]
        for first, second in suite.config.compare:
            both = same_images({cell.method: cell for cell in of_task}, first, second, results_dir)
            if both is None:
                continue
            robust = isinstance(both[0][0], RobustnessOutcomes)
            for metric in dict.fromkeys(cell.metric for cell in of_task):
                if not {(first, metric), (second, metric)} <= {(cell.method, cell.metric) for cell in of_task}:
                    continue
                told = compared(*both, metric)
                labels = {
                    "task": task_title(suite, task),
                    "metric": directed(metric),
                    "pair": pair_name(suite, encoders, first, second),
                }
                rows[type(told)].append(labels | _row(told))
                named[type(told)] |= robust
                by_class |= metric == PER_CLASS
    frames = {kind: pd.DataFrame(rows[kind]) for kind in _LEGENDS if rows[kind]}
    return [
        Compared(
            frame if named[kind] else frame.drop(columns="metric"),
            _LEGENDS[kind].format(by_class=f", of a task in {PER_CLASS} in that" if by_class else ""),
        )
        for kind, frame in frames.items()
    ]


def same_images(
    cells: Mapping[str, TableEntry], first: str, second: str, results_dir: Path
) -> tuple[Seeds, Seeds] | None:
    """The outcomes of two methods on one task; None if they have not the same seeds or not the same images."""
    if first not in cells or second not in cells:
        return None
    runs = cells[first].runs, cells[second].runs
    if [r.seed for r in runs[0]] != [r.seed for r in runs[1]]:
        return None
    one, other = ([record.outcomes for record in of] for of in runs)
    return (one, other) if len({o.images for o in (*one, *other)}) == 1 else None


def compared(first: Seeds, second: Seeds, metric: str) -> Paired | Resampled:
    """Two methods' outcomes on the same images, by the metric of their cells."""
    both: Paired | Resampled = type(first[0]).compare(first, second, metric)
    return both


def points(difference: float, interval: Interval) -> str:
    """``+1.2 [+0.2, +2.2]`` of shares."""
    return f"{100 * difference:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _row(told: Paired | Resampled) -> dict[str, str]:
    counts = {"only 1st": str(told.first_only), "only 2nd": str(told.second_only)} if isinstance(told, Paired) else {}
    return {
        "difference": points(told.difference, told.interval), **counts,
        "p": f"{told.p:.2g}", "images": str(told.images),
    }  # fmt: skip


_LEGENDS: dict[type, str] = {Paired: PAIRED, Resampled: RESAMPLED}
"""By the way in which two methods are compared."""
