"""Calibration: does a classifier's confidence agree with its accuracy?

- ECE, the expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3), in percent: predictions are sorted into 15 bins of
  equal width by confidence, ((m - 1) / 15, m / 15]; ECE is the absolute difference between mean confidence and accuracy in a bin, averaged
  over images.
- NLL, the mean negative natural logarithm of the label's probability, in nats.

ECE is biased upwards for few images: random differences in the bins do not cancel in absolute values. On bootstrap resamples it is higher
by the same amount again, so the interval is reflected (:data:`lutbench.evaluate.statistics.BASIC`) and clipped at 0. Plain percentiles
would exclude 0 for a calibrated classifier, whatever the number of images.
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
    """A metric with its 95 % interval over images; the fields of a :class:`lutbench.evaluate.outcomes.Measurement`."""

    metric: str
    value: float
    unit: str
    n: int
    low: float
    high: float
    interval: str


def differences(confidence: ArrayLike, right: ArrayLike) -> NDArray[np.float64]:
    """Return (n, BINS) the ``confidence`` (n,) of each image minus its correctness (1 or 0) in its bin; 0 in other bins."""
    sure = np.asarray(confidence, np.float64)
    made = np.zeros((len(sure), BINS))
    bins = (np.ceil(sure * BINS).astype(np.int64) - 1).clip(0, BINS - 1)
    made[np.arange(len(sure)), bins] = sure - np.asarray(right, np.float64)
    return made


def ece(sums: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return ECE (b,), between 0 and 1, from sums over ``n`` images of their :func:`differences` (b, BINS)."""
    return np.asarray(np.abs(sums).sum(-1) / n)


def calibration(scores: Scores | None, right: NDArray[np.bool_]) -> list[Calibrated]:
    """Return ECE in percent and, if the label's probability is known, NLL, with intervals; empty without scores."""
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
    """Return the reflected interval of a non-negative number from the percentiles (2,) of its resamples."""
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
        raise ValueError(f"{metric} cannot be computed: the record has no probabilities")
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
