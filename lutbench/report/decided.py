"""Comparisons that were fixed before the first run, and their results: differences over seeds, Holm's correction, and a verdict by a rule.

The rule is one for all suites. A comparison is **for** the first row if it is ahead and Student's t on the differences between runs
with the same seed, two-sided, gives p below 0.05 after Holm's correction (Scandinavian Journal of Statistics 6, 1979) within its
family; **against** it if it is behind and p is as low; else **open**. The question is answered with *support* if all primary
comparisons are for the first row, with *contradiction* if one is against it and none for it, and is *undecided* otherwise. There is
no answer from other seeds than were decided on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from lutbench.errors import listed
from lutbench.evaluate.statistics import Comparison
from lutbench.lineage import described
from lutbench.recipes.decided import DecidedComparison
from lutbench.record import Record
from lutbench.report.comparisons import compare, difference_numbers, interval_points, on_same_images, points
from lutbench.report.entries import TableEntry, six_digits
from lutbench.report.sections import ANY, Section, View, directed

LEVEL = 0.05
"""Probability at most of calling a family's difference one, where there is none in any of its comparisons."""

Outcome = Literal["for", "against", "open", "not measured"]

RULE = (
    "Student's t on the differences between runs with the same seed gives a two-sided p, with Holm's correction within the primary and "
    "within the secondary comparisons. If p is below 0.05, a comparison is for the first row if that row is better, and against it if it "
    "is worse; else it is open. The verdict is support if all primary comparisons are for the first row, contradiction if at least one is "
    "against it and none for it, and undecided otherwise."
)
UNDECIDED_BEFORE = (
    "Nothing was decided before these numbers were seen: they suggest hypotheses but are no evidence for them. Comparisons that are "
    "chosen afterwards have p values that are too small."
)
VERDICTS = {
    "support": "Verdict: support.",
    "contradiction": "Verdict: contradiction.",
    "undecided": "Verdict: undecided.",
    "not measured": "No verdict yet: not all primary comparisons were measured.",
}


@dataclass(frozen=True)
class Answer:
    """A comparison that was decided on, and what came out."""

    family: Literal["primary", "secondary"]
    decided: DecidedComparison
    first: TableEntry | None
    second: TableEntry | None
    why_not: str
    """Why it is not measured; empty if it is."""
    compared: Comparison | None = None
    """The two rows on the same images; None if they are not measured."""
    p: float | None = None
    """Over seeds, two-sided, as it is; None if they are not measured."""
    corrected: float | None = None
    """After Holm's correction within the family, in which what is not measured counts as 1."""

    @property
    def outcome(self) -> Outcome:
        """What it says of the first row."""
        if self.corrected is None or self.compared is None or self.first is None:
            return "not measured"
        if self.corrected >= LEVEL:
            return "open"
        return "for" if (self.compared.difference > 0) != self.first.is_lower_better else "against"


def holm(p: Sequence[float]) -> list[float]:
    """Return p values (n,) corrected for the number of them: the k-th smallest, from 0, times n - k, never below a smaller one."""
    order, greatest, corrected = np.argsort(p, kind="stable"), 0.0, [1.0] * len(p)
    for rank, index in enumerate(order.tolist()):
        greatest = max(greatest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = greatest
    return corrected


def p_over_seeds(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of Student's t on differences (n,) between runs with the same seed; None of fewer than two.

    Of differences that are all the same, to twelve decimals, p is 1 where they are 0, and else 0: no spread was seen.
    """
    if len(differences) < 2:
        return None
    from scipy.special import stdtr

    if len(same := {round(one, 12) for one in differences}) == 1:
        return float(same == {0})
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    return float(2 * stdtr(len(differences) - 1, -abs(mean / error)))


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Return which of :data:`VERDICTS` the outcomes of the primary comparisons are."""
    if "not measured" in outcomes:
        return "not measured"
    if all(outcome == "for" for outcome in outcomes):
        return "support"
    return "contradiction" if "against" in outcomes and "for" not in outcomes else "undecided"


def answers(view: View) -> list[Answer]:
    """Return every comparison that the suite decided on, primary ones first."""
    decided = view.suite.config.decided
    if decided is None:
        return []
    found = []
    families: tuple[tuple[Literal["primary", "secondary"], list[DecidedComparison]], ...] = (
        ("primary", decided.primary),
        ("secondary", decided.secondary),
    )
    for family, comparisons in families:
        of_family = [_answer(view, family, one, decided.seeds) for one in comparisons]
        corrected = holm([1.0 if one.p is None else one.p for one in of_family])
        found += [
            one if one.p is None else replace(one, corrected=p) for one, p in zip(of_family, corrected, strict=True)
        ]
    return found


def decided_sections(view: View) -> list[Section]:
    """Return what the suite decided beforehand and what came out; of one that explores, that nothing was decided."""
    config = view.suite.config
    if config.kind == "exploration":
        return [Section(legend=UNDECIDED_BEFORE)]
    if config.decided is None:
        return []
    found = answers(view)
    came = VERDICTS[verdict([one.outcome for one in found if one.family == "primary"])]
    question, settings = (" ".join(text.split()) for text in (config.decided.question, config.decided.settings))
    legend = "\n\n".join(
        [
            f"Question: {question} **{came}**",
            f"Rule: seeds {_numbered(config.decided.seeds)}, no more and no fewer. {RULE}",
            f"Settings: {settings}",
            *filter(None, [_made_on(view, found)]),
        ]
    )
    frame = pd.DataFrame([_row(view, one) for one in found])
    behind = {(row, ANY): [e.row for e in (one.first, one.second) if e] for row, one in enumerate(found)}
    return [
        Section(
            "Comparisons decided beforehand",
            frame=frame,
            legend=legend,
            name="decided",
            data=_numbers(view, found),
            rows_behind=behind,
        )
    ]


def _answer(
    view: View, family: Literal["primary", "secondary"], decided: DecidedComparison, seeds: Sequence[int]
) -> Answer:
    first, second = (_entry(view, decided, method) for method in decided.pair)
    why_not = _why_not(view, decided, first, second, seeds)
    if why_not or first is None or second is None:
        return Answer(family, decided, first, second, why_not)
    compared = compare(first, second, first.metric)
    differences = compared.seed_differences
    if compared.over != "seeds" or len(differences) == 1:  # `compare` says so where all seeds differ by the same
        differences = (compared.difference,) * len(seeds)
    return Answer(family, decided, first, second, "", compared, p_over_seeds(differences))


def _entry(view: View, decided: DecidedComparison, method: str) -> TableEntry | None:
    """Return the entry of a comparison's row: by its metric or, if that is not given, by the first of the task."""
    of_task = [entry for entry in view.entries if (entry.task, entry.method) == (decided.task, method)]
    return next((entry for entry in of_task if decided.metric in ("", entry.metric)), None)


def _why_not(
    view: View, decided: DecidedComparison, first: TableEntry | None, second: TableEntry | None, seeds: Sequence[int]
) -> str:
    """Return why there is no answer yet, or none from these seeds; empty if there is one."""
    if first is None or second is None:
        metrics = dict.fromkeys(entry.metric for entry in view.entries if entry.task == decided.task and entry.metric)
        return f"no metric {decided.metric!r}; the task has {', '.join(metrics) or 'none yet'}"
    for entry in (first, second):
        if len(entry.runs) < entry.planned:
            some = f"{len(entry.runs)} of {entry.planned} runs" if entry.runs else "no run"
            return f"{some} of {view.method_label(entry.method)}"
        measured = sorted({record.seed for record in entry.runs})
        if measured != sorted(seeds):
            return f"seeds {_numbered(seeds)} were decided on, {_numbered(measured)} measured"
    if not on_same_images(first, second):
        return "not the same images or seeds"
    return _other_copies([record for entry in (first, second) for record in _behind(view, entry)])


def _numbered(seeds: Sequence[int]) -> str:
    return listed(map(str, seeds), 12)


def _behind(view: View, entry: TableEntry) -> list[Record]:
    """Return the records of an entry, and those of the runs that they started from."""
    found, names = [], dict.fromkeys(record.run for record in entry.runs)
    for planned in reversed(view.suite.runs):  # each before the one that it starts from
        if planned.name in names and planned.name in view.records:
            found.append(view.records[planned.name])
            names |= dict.fromkeys([planned.needs] if planned.needs else [])
    return found


def _other_copies(records: Sequence[Record]) -> str:
    """Return which dataset runs of one kind and draw, with the same settings of data, have in different copies; empty if there is none.

    Fingerprints of caches are compared with those of caches for the same size, not with those of the files.
    """
    copies: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        settings = json.dumps(record.identity_inputs["recipe"].get("data"), sort_keys=True)
        side = getattr(record.kind.recipe.model_validate(record.recipe), "cache_side", None)
        for split, digest in (record.identity_inputs.get("data") or {}).items():
            key = (described(record.recipe), split, record.kind.name, str(record.draw), settings, str(side))
            copies.setdefault(key, set()).add(digest)
    differing = dict.fromkeys(f"{name}, {split}" for (name, split, *_), found in copies.items() if len(found) > 1)
    return f"its runs have different copies of {listed(differing)}" if differing else ""


def _made_on(view: View, found: Sequence[Answer]) -> str:
    """Return on which processors and with which packages the runs behind the answers were made; empty without any."""
    rows = {entry.row: entry for one in found if one.compared for entry in (one.first, one.second) if entry}
    records = {record.run: record for entry in rows.values() for record in _behind(view, entry)}.values()
    if not records:
        return ""
    machines = dict.fromkeys(str(one.hardware) for one in records)
    packages = {tuple(sorted(one.packages.items())) for one in records}
    told = "the same packages" if len(packages) == 1 else f"{len(packages)} sets of packages, which the records list"
    return f"The {len(records)} runs behind these comparisons were made on {listed(machines, 4)}, with {told}."


def _row(view: View, answer: Answer) -> dict[str, str]:
    """Return the row that people read."""
    first, compared = answer.first, answer.compared
    labels = " - ".join(view.method_label(method) for method in answer.decided.pair)
    row = {
        "": answer.family,
        "comparison": labels,
        "task": view.task_title(first) if first else answer.decided.task,
        "metric": directed(first) if first else answer.decided.metric,
        **dict.fromkeys(("difference", "over images", "over seeds", "p", "p, Holm"), ""),
        "outcome": f"not measured: {answer.why_not}" if answer.outcome == "not measured" else answer.outcome,
    }
    if first is None or compared is None:
        return row
    return row | {
        "difference": points(compared.difference, compared.interval, first.unit).partition(" ")[0],
        "over images": interval_points(compared.interval, first.unit),
        "over seeds": interval_points(compared.seed_interval, first.unit) if compared.over == "seeds" else "",
        "p": "" if answer.p is None else f"{answer.p:.2g}",
        "p, Holm": "" if answer.corrected is None else f"{answer.corrected:.2g}",
    }


def _numbers(view: View, found: Sequence[Answer]) -> pd.DataFrame:
    """Return the table for programs, differences and the ends of their intervals in points or the metric's unit."""
    return pd.DataFrame(
        [
            {
                "suite": view.suite.name, "family": one.family, "task": one.decided.task,
                "metric": one.first.metric if one.first else one.decided.metric,
                "first": one.decided.pair[0], "second": one.decided.pair[1],
                **(difference_numbers(one.compared, one.first.unit) if one.compared and one.first else {}),
                "p": six_digits(one.p), "p corrected": six_digits(one.corrected), "outcome": one.outcome,
            }
            for one in found
        ]
    )  # fmt: skip
