"""Compare a user's records with those that come with the repository, to show that an installation works.

Training on two machines does not give the same bits: other processors and libraries add in a different order. So the records of
runs with the same recipe, seed and data are compared image by image. The verdict is

- ``same bits``: all measurements, and the hashes of all files of the record, are equal (in records of earlier versions, apart from
  the image names, which they do not have);
- ``within machine variation``: the difference is at most :data:`POINTS` (for a percentage) or :data:`SHARE` of the value (for other
  metrics), or its 95 % interval over images contains 0; for numbers without per-image outcomes, such as losses, it is at most
  :data:`LOSS` of the value. This must hold for every metric in the tables, and for every metric of a kind without per-image
  outcomes;
- ``different``: anything else, such as other versions of packages, or a defect. A training of many epochs may end like this on a
  correct installation too: rounding errors grow with every step, until another machine acts like another seed.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from lutbench.errors import UserError
from lutbench.evaluate.calibration import ECE, NLL
from lutbench.evaluate.image_names import KEY
from lutbench.evaluate.outcomes import Measurement
from lutbench.evaluate.scores import SCORES
from lutbench.evaluate.statistics import Comparison
from lutbench.lineage import started_from
from lutbench.record import Record, read_records
from lutbench.report.comparisons import points
from lutbench.report.sections import Section, View, signed

Verdict = Literal["same bits", "within machine variation", "different"]
SAME, WITHIN, DIFFERENT = get_args(Verdict)

POINTS = 1.0
"""Percentage points. Our choice: in the tables of the 24 runs of ``tiny``, nothing differed by more than 0.56 between two generations of
AMD EPYC, while another seed changes values by several points."""

SHARE = 0.02
"""Share of the reference's value, for distances, ranks and the like. Our choice: they vary with the weights, as percentages do."""

LOSS = 1e-3
"""Share of the reference's value. Our choice: the losses of ``tiny`` differed by at most 8.4e-5 between the same machines."""

LEGEND = (
    "Yours minus the reference, with its 95 % interval over images, in the metric that differs most. Within machine variation: "
    f"at most {POINTS:g} point ({SHARE:.0%} of the value if it is not a percentage), or an interval that contains 0; for losses, at "
    f"most {LOSS:.1%}. Another processor adds in a different order, and training amplifies the differences in the last bits."
)


CALIBRATION = (ECE.split(", ")[0], NLL)
"""The beginnings of the names of measurements that records of earlier versions, without scores, do not have."""


@dataclass(frozen=True)
class Agreement:
    """A record and the reference record of the same recipe, seed and data."""

    own: Record
    measured: Measurement
    """The own measurement in the deciding metric: among those in the tables, the one that differs most."""
    expected: Measurement
    """The reference's measurement in this metric."""
    difference: Comparison | None
    """Own minus reference, image by image; None for the same bits, without per-image outcomes, or over other images."""
    verdict: Verdict

    @property
    def distance(self) -> float:
        """The absolute difference as a multiple of what another machine may change."""
        difference = abs(self.measured.value - self.expected.value)
        return difference / _allowed(self.own, self.expected) if difference else 0.0


def compare_with_reference(own: Mapping[str, Record], reference: Mapping[str, Record]) -> list[Agreement]:
    """Compare the records of runs with the same recipe, kind, revision, seed and data in both results.

    The encoder or classifier that a run starts from may differ in its bits, and so may the identities; but it must come from a run for
    which the same holds, or from the same file.
    """
    own_runs, reference_runs = ({record.identity: record for record in side.values()} for side in (own, reference))
    return [
        _compare(own[name], reference[name])
        for name in own
        if name in reference and _inputs(own[name], own_runs) == _inputs(reference[name], reference_runs)
    ]


def reference_section(view: View, results_dir: Path, reference_dir: Path | None = None) -> Section | None:
    """Return the comparison of a suite's records with those in ``reference_dir``; None if there is nothing to compare.

    The default folder is ``reference`` in the results folder, if it exists. Rows that come from another suite, which this one extends,
    are compared with that suite's reference records.

    Raises:
        UserError: if a reference record is damaged, or the given folder has no records of the suite.
    """
    suites = [view.suite.name, *view.suite.config.extends]
    references = [read_records(reference_dir or results_dir / "reference", suite) for suite in suites]
    if reference_dir is not None and not any(references):
        raise UserError(
            f"--reference {reference_dir}: there are no records of suite {' or '.join(suites)} in this folder. Give another results folder."
        )
    found: dict[str, Agreement] = {}
    for reference in references:  # the suite's own before those of what it extends
        for agreement in compare_with_reference(view.records, reference):
            found.setdefault(agreement.own.run, agreement)
    agreements = [found[name] for name in view.records if name in found]
    if not agreements:
        return None
    legend = f"{agreement_sentence(agreements)} {LEGEND}"
    return Section("Comparison with the reference records", frame=agreement_frame(agreements), legend=legend)


def agreement_frame(agreements: Iterable[Agreement]) -> pd.DataFrame:
    """Return a row per run: both values, their difference with its interval over images, and the verdict."""
    rows = []
    for one in agreements:
        unit = one.measured.unit
        digits = one.expected.decimals if one.own.outcomes_file else 4
        own, reference = (f"{m.value:.{digits}f}" for m in (one.measured, one.expected))
        plain = signed(one.measured.value - one.expected.value, digits)
        compared = one.difference
        rows.append(
            {
                "task": f"{one.own.stage}/{one.own.task}",
                "metric": one.measured.metric,
                "run": "/".join(filter(None, (one.own.method, one.own.run.rpartition("/")[2]))),
                "yours": own,
                "reference": reference,
                "difference": points(compared.difference, compared.interval, unit) if compared else plain,
                "": "within" if one.verdict == WITHIN else one.verdict,
            }
        )
    return pd.DataFrame(rows)


def agreement_sentence(agreements: Sequence[Agreement]) -> str:
    """Return ``23 of 24 records agree with the reference: 20 same bits, 3 within ...``, and which are different."""
    verdicts = [one.verdict for one in agreements]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in (SAME, WITHIN) if verdict in verdicts)
    sentence = f"{len(verdicts) - verdicts.count(DIFFERENT)} of {len(verdicts)} records agree with the reference"
    sentence += f": {counts}." if counts else "."
    different = [f"{one.own.run} ({one.measured.metric})" for one in agreements if one.verdict == DIFFERENT]
    return sentence + (f" Different: {', '.join(different)}." if different else "")


def _inputs(record: Record, runs: Mapping[str, Record]) -> dict[str, Any]:
    """Return the identity inputs, with those of the run that it starts from in place of that run's identity and weights."""
    inputs, needed = dict(record.identity_inputs), runs.get(started_from(record).get("run", ""))
    return inputs if needed is None else {**inputs, record.kind.starts_from: _inputs(needed, runs)}


def _compare(own: Record, reference: Record) -> Agreement:
    shared = [(one, other) for one in own.measurements if (other := reference.measured(one.metric))]
    metrics, expected = ({m.metric for m in record.measurements} for record in (own, reference))
    later = all(name.split(", ")[0] in CALIBRATION for name in metrics ^ expected)
    if later and all(one == other for one, other in shared) and _same_files(own, reference):
        return Agreement(own, own.measurements[0], reference.measurements[0], None, SAME)
    printed = own.outcomes.printed() if own.outcomes_file else [one.metric for one in own.measurements]
    decisive = [pair for pair in shared if pair[0].metric in printed] or shared[:1]
    found = [_by_metric(own, reference, *pair) for pair in decisive]
    return max(found, key=lambda one: (one.verdict == DIFFERENT, one.distance))


def _same_files(own: Record, reference: Record) -> bool:
    """Return whether all files of two records are the same, but for names of images or scores that one of them does not keep yet."""
    hashes, expected = ([kept.sha256 for kept in record.files] for record in (own, reference))
    if hashes == expected or not (own.outcomes_file and reference.outcomes_file) or hashes[1:] != expected[1:]:
        return hashes == expected
    kept, before = own.outcomes.arrays(), reference.outcomes.arrays()
    shared = {
        key
        for key in kept.keys() & before.keys()
        if not (key.endswith(".score") and 0 in (len(kept[key]), len(before[key])))
    }
    later = (kept.keys() | before.keys()) - shared
    if not later or not all(key.endswith((KEY, ".score")) or key in SCORES for key in later):
        return False
    return all(kept[key].dtype == before[key].dtype and np.array_equal(kept[key], before[key]) for key in shared)


def _allowed(own: Record, expected: Measurement) -> float:
    """Return the largest difference that another machine may make, whatever its interval; never 0, which nothing could be a multiple of."""
    if own.outcomes_file is not None and expected.unit == "%":
        return POINTS
    return max((LOSS if own.outcomes_file is None else SHARE) * abs(expected.value), sys.float_info.min)


def _by_metric(own: Record, reference: Record, measured: Measurement, expected: Measurement) -> Agreement:
    difference, distance = None, abs(measured.value - expected.value)
    within = distance <= _allowed(own, expected)
    if own.outcomes_file is None:
        agrees = within
    elif own.outcomes.images != reference.outcomes.images:
        agrees = False
    else:
        difference = type(own.outcomes).compare([own.outcomes], [reference.outcomes], measured.metric)
        agrees = within or difference.interval.low <= 0 <= difference.interval.high
    return Agreement(own, measured, expected, difference, WITHIN if agrees else DIFFERENT)
