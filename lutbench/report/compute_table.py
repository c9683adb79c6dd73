"""The compute of pre-training: epochs, FLOP and hours of every run, beside those of the run whose compute budget it has.

Everything is from records: FLOP per image and the number of images are counted when a run ends; hours are those of its training.
Records of earlier versions have no FLOP; their cells are empty.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lutbench.recipes.suite import PlannedRun, Row
from lutbench.record import Record
from lutbench.report.entries import outdated, run_ids, six_digits
from lutbench.report.sections import ANY, Section, View

FLOP = (
    "FLOP of a run, forward and backward, student and teacher: matrix products, convolutions and attention, counted from the recipe; "
    "missing in records of earlier versions."
)
SLOWER = 2
"""By how much the hours that two runs on one machine take for a FLOP may differ before a sentence says so (our choice: idle, they differed
by less between LUT, MAE and SimMIM)."""
HOURS = "Hours: wall-clock time of the training loop, including waiting for data{}."


@dataclass(frozen=True)
class _Spent:
    """What the seeds of a pre-training run took on one machine."""

    planned: PlannedRun
    records: Sequence[Record]
    """None if nothing that counts was run."""
    stale: bool

    @property
    def machine(self) -> str:
        """The machine; empty without records."""
        return str(self.records[0].hardware) if self.records else ""

    @property
    def is_printed(self) -> bool:
        """Whether there is anything to print of it but what is planned."""
        return bool(self.records) or self.stale

    @property
    def epochs(self) -> int:
        """Epochs that were run, or are to be."""
        return int(self.planned.recipe.epochs)  # type: ignore[attr-defined]

    @property
    def flop(self) -> float | None:
        """FLOP of a run; None of a record that does not tell."""
        each, images = (self.extra(name) for name in ("flop_per_image", "training_images"))
        return None if each is None or images is None else self.epochs * images * each

    @property
    def hours(self) -> float | None:
        """The mean over seeds."""
        return sum(record.wall_seconds for record in self.records) / len(self.records) / 3600 if self.records else None

    def extra(self, name: str) -> float | None:
        """Return a number that the record keeps."""
        value = self.records[0].extra.get(name) if self.records else None
        return value if isinstance(value, float | int) else None


def compute_section(view: View) -> Section:
    """Return a row for every pre-training run and machine; empty for a suite with fewer than two runs, or before any was made."""
    runs: dict[str, list[PlannedRun]] = {}
    for run in view.suite.runs:
        if run.stage == "pretrain":
            runs.setdefault(run.task, []).append(run)
    spent = [one for of_task in runs.values() for one in _by_machine(view, of_task)]
    if len(runs) < 2 or not any(one.records for one in spent):
        return Section()
    machines = list(dict.fromkeys(one.machine for one in spent if one.machine))
    labels = _labels(view, spent)
    shown = [one for one in spent if one.is_printed]
    frame = pd.DataFrame([_text(view, one, spent, labels, len(machines) > 1) for one in shown])
    on = f", on {machines[0]}" if len(machines) == 1 else ""
    flop = [FLOP] if any(one.flop for one in spent) else []
    budgets = (budget.sentence(name, labels=labels) for name, budget in view.suite.budgets.items())
    missing = "; ".join(dict.fromkeys(labels[one.planned.task] for one in spent if not one.is_printed))
    sentences = [
        *flop,
        HOURS.format(on),
        *budgets,
        *_doubts(view, spent, labels),
        *([f"Not run: {missing}."] if missing else []),
    ]
    data = pd.DataFrame([_numbers(view, one, spent) for one in spent])
    empty = [name for name in ("FLOP", "GPUs", "seeds") if not (frame[name] != "").any()]
    frame = frame.drop(columns=empty)
    return Section(
        "Compute of pre-training",
        frame=frame,
        legend=" ".join(sentences),
        name="compute",
        data=data,
        rows_behind=_behind(view, shown, [str(column) for column in frame]),
    )


def _behind(view: View, shown: Sequence[_Spent], columns: Sequence[str]) -> dict[tuple[int, int], list[Row]]:
    """Return the rows of runs behind each row of the table; ratios have those of both runs."""
    found: dict[tuple[int, int], list[Row]] = {}
    for number, one in enumerate(shown):
        found[number, ANY] = [one.planned.row]
        if budget := view.suite.budgets.get(one.planned.task):
            ratios = (place for place, name in enumerate(columns) if name.endswith("ratio"))
            found |= {(number, place): [one.planned.row, ("pretrain", budget.like, "")] for place in ratios}
    return found


def _by_machine(view: View, runs: Sequence[PlannedRun]) -> list[_Spent]:
    there = [run for run in runs if run.name in view.records]
    current = [view.records[run.name] for run in there if not outdated(view.suite, run, view.records)]
    groups: dict[str, list[Record]] = {}
    for record in current:
        groups.setdefault(str(record.hardware), []).append(record)
    stale = len(current) < len(there)
    return [_Spent(runs[0], records, stale) for records in groups.values()] or [_Spent(runs[0], (), stale)]


def _ratios(view: View, one: _Spent, spent: Sequence[_Spent]) -> tuple[float | None, float | None]:
    """Return FLOP and hours over those of the run whose compute it was given; hours on the same machine alone."""
    budget = view.suite.budgets.get(one.planned.task)
    others = [other for other in spent if budget and other.planned.task == budget.like and other.records]
    flop = next((one.flop / other.flop for other in others if one.flop and other.flop), None)
    same = [other for other in others if other.machine == one.machine]
    return flop, next((one.hours / other.hours for other in same if one.hours and other.hours), None)


def _doubts(view: View, spent: Sequence[_Spent], labels: Mapping[str, str]) -> list[str]:
    """Return which ratios of hours say more of what else a machine did meanwhile than of the methods."""
    doubtful = []
    for one in spent:
        flop, hours = _ratios(view, one, spent)
        if flop and hours and not 1 / SLOWER < hours / flop < SLOWER:
            doubtful.append(f"{labels[one.planned.task]} ({hours / flop:.2g} times the hours per FLOP)")
    if not doubtful:
        return []
    return [
        f"If the ratio of hours differs much from that of FLOP, the machine may have been busy with other work during one run: {'; '.join(doubtful)}."
    ]


def _labels(view: View, spent: Sequence[_Spent]) -> dict[str, str]:
    """Return how tables name the runs: by their methods, and as the suite file has them where that does not tell them apart."""
    runs = {one.planned.task: one for one in spent}
    labels = {run: "; ".join(map(view.method_label, _methods(view, one))) for run, one in runs.items()}
    times = Counter((labels[run], _encoder(one)) for run, one in runs.items())
    return {
        run: label if label and times[label, _encoder(runs[run])] == 1 else f"{label} ({run})" if label else run
        for run, label in labels.items()
    }


def _methods(view: View, one: _Spent) -> list[str]:
    """Return the names of the methods that the run makes."""
    return [name for name, method in view.suite.config.method.items() if method.pretrain == one.planned.task]


def _text(
    view: View, one: _Spent, spent: Sequence[_Spent], labels: Mapping[str, str], with_machine: bool
) -> Mapping[str, str]:
    """Return the cells of a row that people read."""
    flop, hours = _ratios(view, one, spent)
    budget = view.suite.budgets.get(one.planned.task)
    row = {
        "run": labels[one.planned.task],
        "encoder": _encoder(one),
        "epochs": f"{one.epochs:,}",
        "FLOP": f"{one.flop:.3g}" if one.flop else "",
        "hours": _hours(one.hours) if one.hours is not None else "stale" if one.stale else "",
        "GPUs": str(len(one.records[0].hardware.gpus) or "") if one.records else "",
        "seeds": str(len(one.records) or ""),
    }
    if with_machine:
        row["machine"] = one.machine
    if view.suite.budgets:
        row |= {
            "like": labels[budget.like] if budget else "",
            "FLOP ratio": f"{flop:.3f}" if flop else "",
            "hours ratio": f"{hours:.2g}" if hours else "",
        }
    return row


def _numbers(view: View, one: _Spent, spent: Sequence[_Spent]) -> Mapping[str, Any]:
    """Return a row for programs."""
    budget = view.suite.budgets.get(one.planned.task)
    flop, hours = _ratios(view, one, spent)
    return {
        "suite": view.suite.name, "pretraining": one.planned.task, "methods": " ".join(_methods(view, one)),
        "encoder": _encoder(one), "epochs": one.epochs, "flop per image": one.extra("flop_per_image"),
        "training images": one.extra("training_images"), "flop": one.flop,
        "hours": six_digits(one.hours), "seeds": len(one.records),
        "gpus": len(one.records[0].hardware.gpus) if one.records else None, "machine": one.machine,
        "like": budget.like if budget else "", "unit": budget.unit if budget else "",
        "flop ratio": six_digits(flop), "hours ratio": six_digits(hours),
        "runs": run_ids(one.records), "note": view.note,
    }  # fmt: skip


def _encoder(one: _Spent) -> str:
    encoder = one.planned.recipe.encoder  # type: ignore[attr-defined]
    return str(encoder.label or encoder.model)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"
