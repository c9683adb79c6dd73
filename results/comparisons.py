"""Pairs of methods on the same images: what of a difference could be these images' doing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lutbench.confusions import Confusions, mean_iou
from lutbench.outcomes import Outcomes
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import read_outcomes
from lutbench.statistics import RESAMPLES, Interval, paired, resampled
from results.cells import Cell, method_label, task_title

NOT_OTHER_RUNS = "Interval and p tell what other images would change, not what another training run would."
PAIRED = (
    "Difference in points with its 95 % interval (Agresti and Min); images on which only the first or only the second "
    "method is right (of several seeds, right in more of them); p of the exact McNemar test. " + NOT_OTHER_RUNS
)
RESAMPLED = (
    f"Difference of mIoU in points (of several seeds, their mean) with the percentiles of {RESAMPLES} resamples of the "
    f"images, the same for both methods, as its 95 % interval; p, two-sided, from the same, {2 / RESAMPLES:.2g} at the "
    "least. " + NOT_OTHER_RUNS
)


class Compared(NamedTuple):
    """The pairs of one kind of task."""

    table: pd.DataFrame
    legend: str


def comparison_tables(suite: LoadedSuite, made: list[Cell], results_dir: Path) -> list[Compared]:
    """The suite's pairs of methods on the same images, in a table for each way of comparing that has rows.

    A pair is left out where the two were not run with the same seeds, or not measured on the same images.
    """
    by = {(cell.method, cell.task): cell for cell in made}
    rows: dict[type, list[dict[str, str]]] = {kind: [] for kind in _WAYS}
    for task in suite.suite.downstream:
        for first, second in suite.suite.compare:
            if not {(first, task), (second, task)} <= set(by):
                continue
            pair = by[first, task], by[second, task]
            if not pair[0].runs or [r.seed for r in pair[0].runs] != [r.seed for r in pair[1].runs]:
                continue
            outcomes = [[read_outcomes(record, results_dir) for record in cell.runs] for cell in pair]
            if len({o.images for one in outcomes for o in one}) != 1:
                continue  # other images: nothing to pair
            kind = type(outcomes[0][0])
            labels = {
                "task": task_title(suite, task),
                "pair": f"{method_label(suite, first)} - {method_label(suite, second)}",
            }
            rows[kind].append(labels | _WAYS[kind].row(*outcomes))
    return [Compared(pd.DataFrame(rows[kind]), way.legend) for kind, way in _WAYS.items() if rows[kind]]


def _right_or_not(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> dict[str, str]:
    told = paired(*(np.stack([o.right() for o in one]) for one in (first, second)))
    return {
        "difference": _points(told.difference, told.interval),
        "only 1st": str(told.first_only),
        "only 2nd": str(told.second_only),
        "p": f"{told.p:.2g}",
        "images": str(told.images),
    }


def _mean_ious(first: Sequence[Confusions], second: Sequence[Confusions]) -> dict[str, str]:
    areas = [np.stack([o.areas() for o in one]) for one in (first, second)]
    told = resampled(areas[0], areas[1], mean_iou)
    return {
        "difference": _points(told.difference, told.interval),
        "p": f"{told.p:.2g}",
        "images": str(told.images),
    }


def _points(difference: float, interval: Interval) -> str:
    return f"{100 * difference:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


class _Way(NamedTuple):
    row: Callable[[Any, Any], dict[str, str]]
    legend: str


_WAYS: dict[type, _Way] = {Outcomes: _Way(_right_or_not, PAIRED), Confusions: _Way(_mean_ious, RESAMPLED)}
"""How two methods are compared, by the kind of their outcomes."""
