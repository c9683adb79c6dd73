"""The loss curve of a training: at most 200 points, each a mean over equally many steps, independent of logging intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lutbench.files import write_json
from lutbench.losses import POINTS, LossCurve

CURVE = "curve.json"
"""File in a run's folder with the curve so far, for ``lutbench status``."""


class _Part(NamedTuple):
    """Sums over the steps of one point."""

    micro_batches: int
    sums: tuple[float, ...]
    """Of each loss over them."""


class CurveRecorder:
    """Accumulate losses to a curve. The steps of a point depend only on the total number of steps.

    So a curve does not depend on the intervals of logging and checkpoints or on interruptions: a checkpoint stores the exact sums,
    :attr:`state`.
    """

    def __init__(self, steps: int, state: Mapping[str, Any] | None = None) -> None:
        """Start the curve of a training of ``steps`` steps, or continue it from the ``state`` of a checkpoint."""
        kept = state or {"losses": [], "parts": []}
        self.steps, self.points = steps, min(POINTS, steps)
        self._names: tuple[str, ...] = tuple(kept["losses"])
        self._parts = {int(row[0]): _Part(int(row[1]), tuple(row[2:])) for row in kept["parts"]}

    def add(self, step: int, names: Sequence[str], losses: Sequence[float]) -> None:
        """Add the ``losses`` of a micro-batch of ``step``, in the order of their ``names``, which is always the same."""
        self._names = tuple(names)
        point = step * self.points // self.steps
        count, sums = self._parts.get(point, _Part(0, (0.0,) * len(losses)))
        self._parts[point] = _Part(count + 1, tuple(a + b for a, b in zip(sums, losses, strict=True)))

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the names of the losses; and of every point its number, the micro-batches, and the sum of each loss."""
        parts = [[float(point), float(part.micro_batches), *part.sums] for point, part in sorted(self._parts.items())]
        return {"losses": list(self._names), "parts": parts}

    def curve(self, done: int) -> LossCurve | None:
        """Return the points whose steps are all among the first ``done``; None if there are none yet.

        Of a run that began before curves were kept they are those since.
        """
        last = {point: -(-(point + 1) * self.steps // self.points) for point in self._parts}  # steps up to its end
        whole = [point for point in sorted(self._parts) if last[point] <= done]
        if not whole:
            return None
        parts = [self._parts[point] for point in whole]
        means = zip(*([_rounded(value / part.micro_batches) for value in part.sums] for part in parts), strict=True)
        losses = {name: list(values) for name, values in zip(self._names, means, strict=True)}
        return LossCurve(steps=[last[point] for point in whole], losses=losses)


def _rounded(value: float) -> float:
    """Return a value to seven digits: a loss is of float32, which has no more."""
    return float(f"{value:.7g}")


def write_progress(folder: Path, curve: LossCurve | None) -> None:
    """Write the curve so far into a run's folder."""
    if curve is not None:
        write_json(folder / CURVE, curve.model_dump())
