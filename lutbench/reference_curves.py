"""The loss curves of reference records, and whether a run in progress follows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutbench.files import read_model
from lutbench.losses import LossCurve, departures, same_training
from lutbench.record import record_path
from lutbench.record_search import intact_records
from lutbench.train.curve import CURVE

if TYPE_CHECKING:
    from lutbench.run import Run

REFERENCE = "reference"
"""The folder of the reference records, tables and figures, inside the results folder."""


def reference_curves(folder: Path | None, suite: str, run: str, inputs: Mapping[str, Any]) -> list[LossCurve]:
    """Return the reference loss curves of a run, one per seed, from the records in ``folder`` that match the identity ``inputs``.

    They may differ in the seed and in the bits of the weights that the run starts from. Empty without a folder or curves.
    """
    if folder is None:
        return []
    records = intact_records(sorted(record_path(folder, suite, run).parent.glob("seed*.json")))
    return [one.curve for one in records if one.curve is not None and same_training(one.identity_inputs, inputs)]


def departed(run: "Run[Any]") -> str:
    """Return where the losses of a run in progress left the reference band; empty if they did not, or there is no reference.

    The band is that of :mod:`lutbench.losses`, around the reference records of the same suite, run, recipe and data, of all seeds.

    Raises:
        UserError: if its data or weights are absent, without which its identity cannot be computed.
    """
    curve = read_model(run.folder / CURVE, LossCurve)
    if curve is None:
        return ""
    folder = run.workspace.results / REFERENCE
    reference = reference_curves(folder, run.planned.suite, run.name, run.identity_inputs)
    return "; ".join(map(str, departures(curve, reference)))
