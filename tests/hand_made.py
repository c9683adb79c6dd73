"""Records of runs that never ran: outcomes made by hand, kept as the runs would have left them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lutbench.evaluate.outcomes import Measurement, Outcomes
from lutbench.losses import LossCurve
from lutbench.recipes.suite import PlannedRun
from lutbench.record import PerImage, Record
from lutbench.record_writing import make_record, write_record


def answers(right: Iterable[Any], names: str = "") -> Outcomes:
    """Of images of class 1, those on which a classifier is right; they are named by their numbers."""
    hits = np.array([*right], bool)
    named = (f"{names}{number}.png" for number in range(len(hits)))
    return Outcomes.of(np.ones(len(hits), int), np.where(hits, 1, 2), np.where(hits, 0, 3), named)


def keep(
    folder: Path,
    planned: PlannedRun,
    outcomes: PerImage | None,
    *,
    arrays: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    curve: LossCurve | None = None,
    extra: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    **inputs: Any,
) -> Record:
    """Keep a record as a run would leave it; ``inputs`` is what its identity rests on beside the recipe, such as the run before it."""
    document = {
        "stage": planned.kind.name,
        "revision": planned.recipe.revision,
        "seed": planned.seed,
        "recipe": planned.recipe.affecting_results(),
    }
    loss = Measurement(metric="total loss", value=0.5, unit="")
    measured = [loss] if outcomes is None else outcomes.measurements()
    record = make_record(
        planned, document | inputs, measured, wall_seconds=61.4, curve=curve, extra=extra, checkpoint=checkpoint
    )
    write_record(record, outcomes, folder, arrays=arrays, pictures=pictures)
    return record
