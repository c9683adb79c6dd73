"""How a user's records compare with those that come with the repository: the proof that an installation works.

Two machines do not end training with the same bits: another processor or library adds in another order. So a record of the
same recipe, seed and data is compared image by image with the reference's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lutbench.evaluate.statistics import Paired, Resampled
from lutbench.record import Record

Verdict = Literal["same bits", "within what another machine changes", "different"]

POINTS = 1.0
"""Percentage points by which a metric may differ beyond its interval over images. Our choice: of the 24 runs of ``tiny`` on
two generations of AMD EPYC none was 0.6 points off, while another seed moves them by several."""

LOSS = 1e-3
"""Relative difference that numbers without per-image outcomes, such as losses, may have. Our choice: the losses of ``tiny``
on the same two machines differed by 1e-6."""


@dataclass(frozen=True)
class Agreement:
    """A record beside the reference record of the same recipe, seed and data."""

    own: Record
    reference: Record
    metric: str
    value: float
    expected: float
    """The reference's value."""
    unit: str
    difference: Paired | Resampled | None
    """Own minus reference, image by image; None for kinds without per-image outcomes, or over other images."""
    verdict: Verdict


def compare_with_reference(own: Mapping[str, Record], reference: Mapping[str, Record]) -> list[Agreement]:
    """Compare the records that both have of the same recipe, kind, revision, seed and data.

    - ``same bits``: all measurements and the hashes of all files are equal.
    - ``within what another machine changes``: the 95 % interval over images of the paired difference, widened by
      :data:`POINTS`, holds 0; of numbers without per-image outcomes all are within :data:`LOSS` of each other, relatively.
    - ``different``: anything else, such as other versions of packages, or a defect.

    The encoder that a run starts from may differ in its bits, so the identities may differ.
    """
    names = [name for name in own if name in reference and _inputs(own[name]) == _inputs(reference[name])]
    return [_compare(own[name], reference[name]) for name in names]


def agreement_frame(agreements: Iterable[Agreement]) -> pd.DataFrame:
    """Return a row per run: both values, their difference with its interval, and the verdict."""
    rows = []
    for one in agreements:
        percent = one.unit == "%"
        digits = 1 if percent else 4
        row = {
            "run": one.own.run,
            "metric": one.metric,
            "yours": f"{one.value:.{digits}f}",
            "reference": f"{one.expected:.{digits}f}",
            "difference": f"{one.value - one.expected:+.{digits}f}",
            "95 % interval": "",
            "verdict": one.verdict,
        }
        if one.difference is not None:
            low, high = (100 * end for end in one.difference.interval)
            row["95 % interval"] = f"{low:+.1f} to {high:+.1f}"
        rows.append(row)
    return pd.DataFrame(rows)


def agreement_sentence(agreements: Iterable[Agreement]) -> str:
    """Return ``24 records have a reference: 20 same bits, 4 within ...``, and which are different."""
    verdicts = [one.verdict for one in agreements]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts)))
    different = [f"{one.own.run} ({one.metric})" for one in agreements if one.verdict == "different"]
    warning = f" Different: {', '.join(different)}." if different else ""
    return f"{len(verdicts)} records have a reference of the same recipe that came with the suite: {counts}.{warning}"


def _inputs(record: Record) -> dict[str, object]:
    return {name: record.identity_inputs.get(name) for name in ("stage", "revision", "seed", "recipe", "data")}


def _compare(own: Record, reference: Record) -> Agreement:
    first, second = own.measurements[0], reference.measurements[0]
    if own.measurements == reference.measurements and _hashes(own) == _hashes(reference):
        return Agreement(own, reference, first.metric, first.value, second.value, first.unit, None, "same bits")
    difference = _paired(own, reference, first.metric)
    if difference is not None:
        slack = POINTS / 100
        agrees = difference.interval.low - slack <= 0 <= difference.interval.high + slack
    else:
        agrees = len(own.measurements) == len(reference.measurements) and all(
            a.metric == b.metric and abs(a.value - b.value) <= LOSS * max(abs(a.value), abs(b.value))
            for a, b in zip(own.measurements, reference.measurements, strict=True)
        )
    verdict: Verdict = "within what another machine changes" if agrees else "different"
    return Agreement(own, reference, first.metric, first.value, second.value, first.unit, difference, verdict)


def _paired(own: Record, reference: Record, metric: str) -> Paired | Resampled | None:
    if own.outcomes_file is None or reference.outcomes_file is None or own.outcomes.images != reference.outcomes.images:
        return None
    difference: Paired | Resampled = type(own.outcomes).compare([own.outcomes], [reference.outcomes], metric)
    return difference


def _hashes(record: Record) -> list[str]:
    return [kept.sha256 for kept in record.files]
