"""How a user's records compare with those that come with the repository: the proof that an installation works.

Two machines do not end training with the same bits: another processor or library adds in another order. So the records of
runs with the same recipe, seed and data are compared image by image.

Their verdict is

- ``same bits``: all measurements, and the hashes of all files of the record, are equal.
- ``within what another machine changes``: the 95 % interval over images of the paired difference holds 0, or the difference is
  at most :data:`POINTS`; of numbers that are no percentages, such as losses, at most :data:`LOSS` of the value. This holds for
  every metric that tables print; of a kind without per-image outcomes, for all it measured.
- ``different``: anything else, such as other versions of packages, or a defect. A training of many epochs may come out so on a
  sound installation too: rounding grows with every step, until another machine is as good as another seed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from lutbench.evaluate.outcomes import Measurement
from lutbench.evaluate.statistics import Paired, Resampled
from lutbench.record import Record
from lutbench.report.comparisons import points
from lutbench.report.sections import Section, View

Verdict = Literal["same bits", "within what another machine changes", "different"]

POINTS = 1.0
"""Percentage points. Our choice: of all that tables print of the 24 runs of ``tiny``, nothing differed by more than 0.56 between
two generations of AMD EPYC."""

LOSS = 1e-3
"""Share of the value. Our choice: the losses of ``tiny`` differed by at most 8.4e-5 between the same machines."""


LEGEND = (
    "The records of this suite beside those of the same recipes, seeds and data that come with the repository: values, and yours "
    "minus the reference with its 95 % interval over images, in the metric that differs most of those that tables print. Another "
    f"machine changes differences of at most {POINTS:g} point, or whose interval holds 0; of losses at most {LOSS:.1%}."
)


@dataclass(frozen=True)
class Agreement:
    """A record beside the reference record of the same recipe, seed and data."""

    own: Record
    reference: Record
    measured: Measurement
    """What the own record has in the metric that decides the verdict: of several the one that differs most."""
    expected: Measurement
    """What the reference has in the same metric."""
    difference: Paired | Resampled | None
    """Own minus reference, image by image, in shares; None for kinds without per-image outcomes, or if images differ."""
    verdict: Verdict

    @property
    def points(self) -> float:
        """Own minus reference, in the metric's unit."""
        return self.measured.value - self.expected.value


def reference_sections(view: View) -> list[Section]:
    """Return how the records compare with the reference's; nothing if there are none of the same recipes."""
    agreements = compare_with_reference(view.records, view.reference)
    if not agreements:
        return []
    return [
        Section("The reference records", legend=agreement_sentence(agreements)),
        Section(frame=agreement_frame(agreements), legend=LEGEND, files_only=True),
    ]


def compare_with_reference(own: Mapping[str, Record], reference: Mapping[str, Record]) -> list[Agreement]:
    """Compare the records that both have of the same recipe, kind, revision, seed and data, by the name of the run.

    The encoder or classifier that a run starts from may differ in its bits, and so may the identities; but it must come from
    a run of which the same holds, or from the same file.
    """
    own_runs, reference_runs = ({record.identity: record for record in side.values()} for side in (own, reference))
    return [
        _compare(own[name], reference[name])
        for name in own
        if name in reference and _inputs(own[name], own_runs) == _inputs(reference[name], reference_runs)
    ]


def agreement_frame(agreements: Iterable[Agreement]) -> pd.DataFrame:
    """Return a row per run: both values, their difference with its 95 % interval over images, and the verdict."""
    return pd.DataFrame(
        [
            {
                "task": f"{one.own.stage}/{one.own.task}",
                "method": one.own.method,
                "seed": str(one.own.seed),
                "metric": one.measured.metric,
                "yours": _text(one.measured),
                "reference": _text(one.expected),
                "difference": points(one.difference.difference, one.difference.interval)
                if one.difference
                else f"{one.points:+{_format(one.measured)}}",
                "verdict": one.verdict,
            }
            for one in agreements
        ]
    )


def agreement_sentence(agreements: Iterable[Agreement]) -> str:
    """Return ``23 of 24 records agree with the reference: 20 same bits, 3 within ...``, and which are different."""
    agreements = list(agreements)
    verdicts = [one.verdict for one in agreements]
    agreeing: tuple[Verdict, ...] = ("same bits", "within what another machine changes")
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in agreeing if verdict in verdicts)
    different = [
        f"{one.own.run} ({one.measured.metric} {_text(one.measured)}, reference {_text(one.expected)})"
        for one in agreements
        if one.verdict == "different"
    ]
    return (
        f"{len(agreements) - len(different)} of {len(agreements)} records agree with the reference"
        + (f": {counts}." if counts else ".")
        + (f" Different: {'; '.join(different)}." if different else "")
    )


def _inputs(record: Record, runs: Mapping[str, Record]) -> dict[str, Any]:
    """Return the identity inputs, with those of the run that it starts from in place of that run's identity and weights."""
    inputs, part = dict(record.identity_inputs), record.kind.starts_from
    needed = runs.get(inputs.get(part, {}).get("run", ""))
    return {**inputs, part: _inputs(needed, runs)} if needed else inputs


def _compare(own: Record, reference: Record) -> Agreement:
    if own.measurements == reference.measurements and _hashes(own) == _hashes(reference):
        return Agreement(own, reference, own.measurements[0], reference.measurements[0], None, "same bits")
    shared = [(one, other) for one in own.measurements if (other := reference.measured(one.metric))]
    printed = own.outcomes.printed() if own.outcomes_file else [one.metric for one in own.measurements]
    decisive = [pair for pair in shared if pair[0].metric in printed] or shared[:1]
    found = [_by_metric(own, reference, *pair) for pair in decisive]
    return max(found, key=lambda one: (one.verdict == "different", abs(one.points)))


def _by_metric(own: Record, reference: Record, measured: Measurement, expected: Measurement) -> Agreement:
    difference = None
    if own.outcomes_file and reference.outcomes_file and own.outcomes.images == reference.outcomes.images:
        difference = type(own.outcomes).compare([own.outcomes], [reference.outcomes], measured.metric)
    most = POINTS if measured.unit == "%" else LOSS * abs(expected.value)
    agrees = abs(measured.value - expected.value) <= most
    agrees |= difference is not None and difference.interval.low <= 0 <= difference.interval.high
    verdict: Verdict = "within what another machine changes" if agrees else "different"
    return Agreement(own, reference, measured, expected, difference, verdict)


def _hashes(record: Record) -> list[str]:
    return [kept.sha256 for kept in record.files]


def _format(measured: Measurement) -> str:
    return ".1f" if measured.unit == "%" else ".4f"


def _text(measured: Measurement) -> str:
    return f"{measured.value:{_format(measured)}}"
