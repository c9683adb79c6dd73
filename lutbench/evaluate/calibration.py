"""Calibration: whether a classifier is right as often as it is sure.

- ECE, the expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3): predictions are put in 15 bins of equal width by
  their confidence, ((m - 1) / 15, m / 15]; of each bin the mean confidence and the share that is right differ, and ECE is the mean of these
  differences, absolute, over images. In percent.
- NLL, the mean of the negative natural logarithm of the label's probability, in nats.

Of few images ECE is too high: chance makes every bin differ, and the absolute values do not cancel; on resamples it is higher by as much
again. So its interval is reflected (:data:`lutbench.evaluate.statistics.BASIC`), and ends at 0. Where a classifier is calibrated, the
percentiles themselves leave out 0 for any number of images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutbench.evaluate.scores import Scores
from lutbench.evaluate.statistics import BASIC, BOOTSTRAP, Comparison, Interval, bootstrap, percentiles, resampled

BINS = 15
"""Bins of equal width (Guo et al. 2017, section 5)."""

ECE = f"ECE, {BINS} bins"
NLL = "NLL"


class Calibrated(NamedTuple):
    """A number with its 95 % interval over images: the fields of a :class:`lutbench.evaluate.outcomes.Measurement`."""

    metric: str
    value: float
    unit: str
    n: int
    low: float
    high: float
    interval: str


def differences(confidence: ArrayLike, right: ArrayLike) -> NDArray[np.float64]:
    """Return (n, BINS) by how much the ``confidence`` (n,) of each image is above what came of it, 1 or 0, in its bin; 0 in the others."""
    sure = np.asarray(confidence, np.float64)
    made = np.zeros((len(sure), BINS))
    bins = (np.ceil(sure * BINS).astype(np.int64) - 1).clip(0, BINS - 1)
    made[np.arange(len(sure)), bins] = sure - np.asarray(right, np.float64)
    return made


def ece(sums: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return ECE (b,), between 0 and 1, from sums over ``n`` images of their :func:`differences` (b, BINS)."""
    return np.asarray(np.abs(sums).sum(-1) / n)


def calibration(scores: Scores | None, right: NDArray[np.bool_]) -> list[Calibrated]:
    """Return ECE in percent and, where the label's probability was kept, NLL, each with its interval; nothing without scores."""
    if scores is None:
        return []
    has_nll, n = scores.log_probability is not None, len(right)
    values = np.column_stack([summed(scores, right, metric) for metric in ((ECE, NLL) if has_nll else (ECE,))])

    def statistics(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([ece(sums[:, :BINS], n), sums[:, BINS:] / n])

    found, drawn = statistics(values.sum(0)[None])[0], percentiles(bootstrap(values, statistics))
    made = [Calibrated(ECE, 100 * float(found[0]), "%", n, *reflected(100 * found[0], 100 * drawn[:, 0]), BASIC)]
    if has_nll:
        made.append(Calibrated(NLL, float(found[1]), "nats", n, float(drawn[0, 1]), float(drawn[1, 1]), BOOTSTRAP))
    return made


def reflected(value: float, ends: NDArray[np.float64]) -> Interval:
    """Return the interval of a number that is never below 0 from the percentiles (2,) of resamples, which are as far above it as itself is."""
    low, high = np.clip(2 * value - ends[::-1], 0, None).tolist()
    return Interval(low, high)


def summed(scores: Scores | None, right: NDArray[np.bool_], metric: str) -> NDArray[np.float64]:
    """Return what ECE, (n, BINS), or NLL, (n, 1), is the statistic of the sums of.

    Raises:
        ValueError: if no probabilities were kept that it follows from.
    """
    if scores is not None and metric == ECE:
        return differences(scores.confidence, right)
    if scores is None or scores.log_probability is None:
        raise ValueError(f"there is no {metric}: no probabilities were kept that it follows from")
    return -scores.log_probability.astype(np.float64)[:, None]


Seeds = Sequence[tuple[Scores | None, NDArray[np.bool_]]]
"""The scores of a method on every image and what was right (n,), of each seed."""


def compare_calibration(first: Seeds, second: Seeds, metric: str) -> Comparison:
    """Compare two methods by ECE or NLL on the same images.

    The difference is between shares of ECE, and in nats of NLL; its interval is of the percentiles of the resamples, since what few images
    add to ECE is added to both.

    Raises:
        ValueError: as :func:`summed`.
    """
    one, other = (np.stack([summed(*run, metric) for run in seeds]) for seeds in (first, second))
    n = one.shape[1]
    return resampled(one, other, lambda sums: ece(sums, n) if metric == ECE else sums[:, 0] / n)
