"""Pairs of methods on the same images: the uncertainty of a difference over images, and over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from lutbench.evaluate.outcomes import decimals
from lutbench.evaluate.statistics import BASIC, RESAMPLES, Comparison, Interval
from lutbench.record import Record
from lutbench.report.charts import Difference, Forest
from lutbench.report.entries import TableEntry, six_digits, spread
from lutbench.report.sections import ANY, Section, View, by_task, directed, signed

PAIRED = (
    "Difference in points: the first method minus the second, with its 95 % interval over images (by Bonett and Price, see "
    "docs/statistics.md). Only 1st, only 2nd: the number of images that only this method classifies correctly (with several seeds: with "
    "more seeds than the other). p is two-sided; it is below 0.05 exactly if the interval does not contain 0."
)
RESAMPLED = (
    f"Difference in points: the first method minus the second, with its 95 % interval over images: percentiles of {RESAMPLES} resamples of "
    f"the images, the same for both methods. p is two-sided, from the same resamples, and at least {2 / RESAMPLES:.2g}. With several seeds, "
    "the mean over seeds."
)
NOT_OTHER_RUNS = "The interval and p describe the variation over images, not over training runs."
OVER_SEEDS = (
    "Over seeds: the 95 % interval of the same difference, Student's t on the differences between runs with the same seed. It "
    "describes the variation over training runs, on these images; the interval over images and p describe the variation over images, "
    "for these runs. It is missing with one seed, and if all seeds give the same difference, as for weights that were not trained here. "
    "For LUT against MAE, and for any two training methods, the interval over seeds is the one that counts."
)
OVER_DRAWS = (
    "Over draws: the same for one seed and several draws of the training images, from the differences between runs on the same draw. It "
    "describes the variation over draws. With several seeds, the means over draws are compared, seed by seed."
)
SEEDS = (
    "Seeds: the number of seeds whose difference has the same sign, and the number with the opposite sign. Runs with the same seed start "
    "from the same initial weights (where the shapes are the same) and use the same masks, so they form pairs."
)
IN_UNIT = "Difference in points (if the metric is not a percentage: in the unit beside it)"
SPECTRA = (
    "Metrics that are not a mean over images, {}, are biased with few images. Their intervals correct for the bias (basic bootstrap, from the "
    "resamples in the records), the differences do not: a difference may be outside its interval. There are fewer of these resamples, so the "
    "smallest possible p is larger."
)
WHOLE = ("seeds for", "seeds against")
WAYS = {
    "paired": ("Differences on the same images", PAIRED),
    "resampled": ("Differences on the same images, by resampling", RESAMPLED),
}
"""Title and legend of pairs by the way in which they are compared."""


class Pair(NamedTuple):
    """Two entries that were measured with the same seeds on the same images, and their comparison."""

    first: TableEntry
    second: TableEntry
    compared: Comparison
    labels: Mapping[str, str]
    """The first cells of its row, by the heading."""


def comparison_sections(view: View) -> list[Section]:
    """Return the suite's pairs of methods on the same images, in one table for each way of comparison.

    A pair is left out if the two were not run with the same seeds or not measured on the same images.
    """
    pairs: list[Pair] = []
    studied = view.suite.studied
    shown = [e for e in view.entries if e.row not in view.suite.study_rows or e.method in studied]
    for of_task in by_task(shown):
        found = {(entry.method, entry.metric): entry for entry in of_task}
        for first, second in view.suite.config.compare:
            for metric in dict.fromkeys(entry.metric for entry in of_task):
                one, other = found.get((first, metric)), found.get((second, metric))
                if one is None or other is None or not on_same_images(one, other):
                    continue
                labels = {
                    "task": view.task_title(one),
                    "metric": directed(one),
                    "pair": view.pair_name(of_task, one, other),
                }
                pairs.append(Pair(one, other, compare(one, other, metric), labels))
    data = pd.DataFrame([_numbers(view, pair) for pair in pairs])
    data = data.astype(dict.fromkeys(WHOLE, "Int64")) if pairs else data  # absent in some rows, and no floats for that
    return [
        replace(section, name="comparisons", data=None if place else data)
        for place, section in enumerate(pair_sections(view, pairs))
    ]


def _difference(pair: Pair) -> Difference:
    told = {name: text for name, text in pair.labels.items() if name not in ("task", "metric")}
    label = ", ".join(text if name in ("pair", "method") else f"{name} {text}" for name, text in told.items())
    runs = [record.run for entry in (pair.first, pair.second) for record in entry.runs]
    return difference_of(pair.compared, pair.first.unit, pair.labels["task"], pair.labels["metric"], label, runs)


def difference_of(
    compared: Comparison, unit: str, task: str, metric: str, label: str, runs: Sequence[str]
) -> Difference:
    """Return a comparison as a row of a forest plot, in points or the metric's unit."""
    factor, ends = _scale(unit), compared.seed_interval
    return Difference(
        task,
        metric,
        unit,
        label,
        factor * compared.difference,
        (factor * compared.interval.low, factor * compared.interval.high),
        ends and (factor * ends.low, factor * ends.high),
        runs,
    )


def pair_sections(view: View, pairs: Sequence[Pair]) -> list[Section]:
    """Return a section for each way of comparison that has pairs: a row for each, the runs behind it, and the plot of the differences."""
    sections = []
    for way, (title, legend) in WAYS.items():
        of_way = [pair for pair in pairs if pair.compared.way == way]
        if not of_way:
            continue
        shown = [pair.first for pair in of_way]
        table = pd.DataFrame([{**pair.labels, **_text(pair.compared, pair.first.unit)} for pair in of_way])
        table = table.loc[:, (table != "").any()]
        told = {"over seeds": f"{OVER_SEEDS} {SEEDS}", "over draws": OVER_DRAWS}
        over_seeds = [text for column, text in told.items() if column in table] or [NOT_OTHER_RUNS]
        if any(entry.unit != "%" for entry in shown):
            legend = legend.replace("Difference in points", IN_UNIT)
        reflected = dict.fromkeys(entry.metric.split(", ")[0] for entry in shown if _is_reflected(entry))
        spectra = [SPECTRA.format(" and ".join(reflected))] if reflected else []
        legend = " ".join([legend, *spectra, *over_seeds, *view.dataset_notes(shown)])
        behind = {(place, ANY): [pair.first.row, pair.second.row] for place, pair in enumerate(of_way)}
        forest = Forest([_difference(pair) for pair in of_way])
        sections.append(Section(title, frame=table, legend=legend, rows_behind=behind, forest=forest))
    return sections


def on_same_images(first: TableEntry, second: TableEntry) -> bool:
    """Return whether two entries were measured with the same seeds and draws on the same images, of which the outcomes are known.

    The same images have the same names, in copies of the data with the same fingerprint. Training images may be others, as in a sweep
    over their number.
    """
    runs = [*first.runs, *second.runs]
    if not runs or _together(first, second) is None or any(_measured_on(r) != _measured_on(runs[0]) for r in runs):
        return False
    return all(r.outcomes_file for r in runs) and len({r.outcomes.images for r in runs}) == 1


def _measured_on(record: Record) -> dict[str, str]:
    """Return the fingerprints of a run's data but that of its training images, by split."""
    data: Mapping[str, str] = record.identity_inputs.get("data") or {}
    return {split: digest for split, digest in data.items() if split != "train"}


def _together(first: TableEntry, second: TableEntry) -> tuple[list[Record], list[Record]] | None:
    """Return the runs of two entries, matched by seed and draw; None if their seeds or draws differ.

    If one has a single run per seed, as a task on all training images has, that run is matched with every draw of the other.
    """
    several = max(first, second, key=lambda entry: entry.draws)
    keys = [(r.seed, r.draw) for r in several.runs]
    both = []
    for entry in (first, second):
        runs = {(r.seed, r.draw): r for r in entry.runs}
        if entry.draws == 1 < several.draws and len(keys) == several.planned:
            runs = {(seed, draw): runs[seed, 0] for seed, draw in keys if (seed, 0) in runs}
        if set(runs) != set(keys):
            return None
        both.append([runs[key] for key in keys])
    return both[0], both[1]


def compare(first: TableEntry, second: TableEntry, metric: str) -> Comparison:
    """Compare two methods by a metric on the same images, seed by seed and draw by draw; see :func:`on_same_images`."""
    runs = _together(first, second)
    assert runs is not None, "see on_same_images"
    both: list[list[Any]] = [[r.outcomes for r in of] for of in runs]
    compared: Comparison = type(both[0][0]).compare(*both, metric)
    differences, over = spread(compared.seed_differences, [r.seed for r in runs[0]])
    return replace(compared, seed_differences=tuple(differences), over=over)


def points(difference: float, interval: Interval, unit: str = "%") -> str:
    """Return ``+1.2 [+0.2, +2.2]`` for shares; for other metrics in their unit, see :func:`decimals`."""
    digits = decimals(unit, difference, (interval.high - interval.low) / 2)
    return f"{signed(difference * _scale(unit), digits)} {interval_points(interval, unit)}"


def interval_points(interval: Interval | None, unit: str = "%") -> str:
    """Return ``[+0.2, +2.2]`` for shares, for other metrics in their unit; empty without an interval."""
    if interval is None:
        return ""
    digits = decimals(unit, max(map(abs, interval)), (interval.high - interval.low) / 2)
    return f"[{', '.join(signed(end * _scale(unit), digits) for end in interval)}]"


def _scale(unit: str) -> int:
    """Return the factor for printed differences: 100 if the unit is percent, because the differences are between shares."""
    return 100 if unit == "%" else 1


def _is_reflected(entry: TableEntry) -> bool:
    """Return whether the resamples of a metric were drawn when it was measured."""
    measured = entry.runs[0].measured(entry.metric)
    return measured is not None and measured.interval == BASIC


def _only(compared: Comparison) -> list[str]:
    """Return the number of images that only the first and only the second gets right; empty if they are not counted."""
    return ["" if count is None else str(count) for count in (compared.first_only, compared.second_only)]


def _text(compared: Comparison, unit: str) -> dict[str, str]:
    """Return the cells of a row that people read."""
    first_only, second_only = _only(compared)
    return {
        "difference": points(compared.difference, compared.interval, unit),
        **{f"over {of}": interval_points(compared.seed_interval, unit) if compared.over == of else "" for of in ("seeds", "draws")},
        "seeds": "" if compared.seeds_for_and_against is None else "{} : {}".format(*compared.seeds_for_and_against),
        "only 1st": first_only, "only 2nd": second_only, "p": f"{compared.p:.2g}", "images": str(compared.images),
    }  # fmt: skip


def difference_numbers(compared: Comparison, unit: str) -> dict[str, float | None]:
    """Return a difference and the ends of its intervals for programs, in points or the metric's unit."""
    ends: tuple[float | None, float | None] = compared.seed_interval or (None, None)
    of_draws = dict(zip(("low over draws", "high over draws"), ends, strict=True)) if compared.over == "draws" else {}
    low, high = (None, None) if of_draws else ends
    shares = {
        "difference": compared.difference, "low": compared.interval.low, "high": compared.interval.high,
        "low over seeds": low, "high over seeds": high, **of_draws,
    }  # fmt: skip
    return {name: _rounded(share, unit) for name, share in shares.items()}


def counted_numbers(compared: Comparison) -> dict[str, Any]:
    """Return what a comparison counted, and its p, for programs."""
    seeds_for, seeds_against = compared.seeds_for_and_against or (None, None)
    first_only, second_only = _only(compared)
    return {
        "seeds for": seeds_for, "seeds against": seeds_against,
        "only first": first_only, "only second": second_only, "p": six_digits(compared.p), "images": compared.images,
    }  # fmt: skip


def _numbers(view: View, pair: Pair) -> dict[str, Any]:
    """Return a row for programs."""
    first, second = pair.first, pair.second
    return {
        "suite": view.suite.name, "task": first.task, "metric": first.metric, "first": first.method, "second": second.method,
        **difference_numbers(pair.compared, first.unit), "seeds": first.seeds, **counted_numbers(pair.compared),
        "note": " ".join(view.notes_of(first)),
    }  # fmt: skip


def _rounded(difference: float | None, unit: str) -> float | None:
    return six_digits(difference) if difference is None or unit != "%" else round(100 * difference, 6)
