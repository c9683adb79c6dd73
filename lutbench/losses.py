"""Loss curves, and the reference band in which another run of the same recipe is expected.

The band is our choice. A curve is smoothed by a running median. The middle of the band is the mean of the smoothed curves of the
reference seeds; its half width is three standard deviations, but at least :data:`LEAST` of the middle. The standard deviation is the
larger of two: that of the points around their smoothed curve, estimated robustly over the whole curve (1.4826 times the median absolute
value); and, with several seeds, that between the smoothed curves of the seeds at the point. A run is outside where its smoothed curve is,
so a single step cannot put it there.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

POINTS = 200
"""Maximum number of points of a curve."""

WINDOW = 7
"""Points that the running median is over, fewer at the ends (our choice)."""

DEVIATIONS = 3.0
"""Deviations from the middle to the edge of the band (our choice)."""

LEAST = 0.02
"""Minimum half width as a share of the middle (our choice): with large batches the points hardly scatter, but another seed or machine still
gives another curve."""

FEWEST = 5
"""Minimum number of points before a run is compared (our choice)."""

Values = NDArray[np.float64]


class LossCurve(BaseModel):
    """The losses of a training: every point is a mean over the micro-batches of the steps since the point before."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    steps: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1, max_length=POINTS)]
    """Optimiser steps done at the end of each point, ascending."""
    losses: dict[str, list[float]]
    """The values of each loss by name, one per point."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise ValueError("steps must ascend")
        if any(len(values) != len(self.steps) for values in self.losses.values()):
            raise ValueError("there must be as many losses as steps")
        return self


class Band(NamedTuple):
    """Where the smoothed curve of another run is expected; all (n,)."""

    steps: list[int]
    middle: Values
    half_width: Values


class Departure(NamedTuple):
    """Where a curve left a band and stayed outside to its end."""

    loss: str
    step: int
    """The first one outside."""
    value: float
    """Of the smoothed curve at its end."""
    low: float
    high: float
    """The band there."""

    def __str__(self) -> str:
        return (
            f"{self.loss} loss outside the reference's band since step {self.step:,}: {self.value:.4g}, expected {self.low:.4g} to "
            f"{self.high:.4g}"
        )


def smoothed(values: Sequence[float] | Values) -> Values:
    """Return the running median (n,) of ``values`` (n,), over :data:`WINDOW` points around each, as far as there are."""
    given, reach = np.asarray(values, np.float64), WINDOW // 2
    return np.array([np.median(given[max(0, i - reach) : i + reach + 1]) for i in range(len(given))])


def band_of(curves: Sequence[LossCurve], loss: str, until: int | None = None) -> Band | None:
    """Return the band of a ``loss`` around the reference ``curves``, one per seed; None if they do not have this loss at the same steps.

    With ``until``, return the part up to that step, smoothed without the later points, as for a run that is at this step.
    """
    having = [curve for curve in curves if loss in curve.losses]
    if not having or any(curve.steps != having[0].steps for curve in having):
        return None
    values = np.array([curve.losses[loss] for curve in having])
    scatter = 1.4826 * float(np.median(np.abs(values - np.stack([smoothed(row) for row in values]))))
    steps = [step for step in having[0].steps if until is None or step <= until]
    if not steps:
        return None
    smooth = np.stack([smoothed(row[: len(steps)]) for row in values])
    between = smooth.std(0, ddof=1) if len(having) > 1 else np.zeros(len(steps))
    middle = smooth.mean(0)
    return Band(steps, middle, np.maximum(DEVIATIONS * np.maximum(between, scatter), LEAST * np.abs(middle)))


def departures(curve: LossCurve, reference: Sequence[LossCurve]) -> list[Departure]:
    """Return the losses whose smoothed curve ends outside the reference band, and since when; empty if the curve is too short."""
    found = []
    for loss, values in curve.losses.items():
        band = band_of(reference, loss, until=curve.steps[-1])
        if band is None or len(values) < FEWEST or band.steps[-len(values) :] != curve.steps:
            continue
        own, middle, half = smoothed(values), band.middle[-len(values) :], band.half_width[-len(values) :]
        outside = np.abs(own - middle) > half
        if outside[-1]:
            inside = np.flatnonzero(~outside)
            first = int(inside[-1]) + 1 if len(inside) else 0
            low, high = float(middle[-1] - half[-1]), float(middle[-1] + half[-1])
            found.append(Departure(loss, curve.steps[first], float(own[-1]), low, high))
    return found


def same_training(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Return whether two runs' identity inputs describe the same training except for the seed and the bits of the initial weights."""
    return all(one.get(part) == other.get(part) for part in ("stage", "revision", "recipe", "data"))
