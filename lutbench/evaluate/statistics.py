"""Confidence intervals: for one seed, for several seeds, and for the difference of two methods on the same images.

Shares are between 0 and 1; all intervals are 95 % confidence intervals.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95

Z = 1.959963984540054
"""The quantile of the normal distribution that leaves out 2.5 % on either side: ``scipy.special.ndtri(0.975)``."""

BOOTSTRAP = "bootstrap over images"
"""Name of the percentile interval, as measurements carry it."""

QUERIES = "bootstrap over queries"
"""The same over the queries of a retrieval."""

BASIC = "basic bootstrap over images"
"""Name of the interval that is the percentiles of a bootstrap, reflected at the value (Efron and Tibshirani 1993, section 13.3).

A rank of few images is too low, and on resamples, which have fewer different ones, lower by as much again: reflected, the two cancel.
So the value may lie below its interval."""

RESAMPLES = 2000
"""Resamples of a bootstrap: the ends of its intervals are then good to about a tenth of their standard error."""

KEPT_BYTES = 2**24
"""Bytes that the resamples of one number of images may take to be kept in memory."""

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A function from sums over images (b, ...), a row per resample, to values (b,) or (b, m)."""


class Interval(NamedTuple):
    """Both ends of a 95 % interval."""

    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a share ``successes / n``: the uncertainty from the sample of ``n`` test images.

    It does not include the variation between training runs. Source: Wilson 1927, without continuity correction.

    Raises:
        ValueError: if it is no share.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a share between 0 and 1")
    # As scipy.stats computes it, in the same order, so that bits are the same: to import that takes half a second.
    share, whole = successes / n, 2 * (n + Z**2)
    centre = (2 * n * share + Z**2) / whole
    half = Z / whole * sqrt(4 * n * share * (1 - share) + Z**2)
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def over_seeds(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean over two or more seeds: the uncertainty from the choice of seeds, on the same test images.

    In the unit of ``values``. For two seeds it is wide, as it should be (12.7 standard errors).

    Raises:
        ValueError: for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, found {len(values)}")
    mean = float(np.mean(values))
    half = float(student(len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Interval(mean - half, mean + half)


def student(freedom: int) -> float:
    """Return the quantile of Student's t with so many degrees of freedom that leaves out 2.5 % on either side."""
    from scipy.special import stdtrit  # here, because it takes a while to import

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


@dataclass(frozen=True)
class Comparison:
    """Two methods, or two sets of as many seeds, on the same images: by :func:`paired`, or by :func:`resampled`."""

    images: int
    difference: float
    """The first's share of images that are right, or its statistic, minus the second's; mean over seeds."""
    interval: Interval
    """95 % interval of the difference, over images."""
    p: float
    """The probability, two-sided, of a difference at least as large if the methods were equally good."""
    seed_differences: tuple[float, ...]
    way: Literal["paired", "resampled"]
    """By the images that are right with one method only, or by resamples of the images."""
    first_only: int | None = None
    """Images on which the first is right in more seeds than the second (one seed: only the first is right); None where
    images are not right or wrong."""
    second_only: int | None = None
    over: Literal["seeds", "draws"] = "seeds"
    """Whether ``seed_differences`` are those of seeds or, of one seed, those of draws of the training images."""

    @property
    def seed_interval(self) -> Interval | None:
        """95 % interval of the difference, over seeds; None for one seed, or where all have the same difference, as of weights
        that no seed has made."""
        return over_seeds(self.seed_differences) if len(set(self.seed_differences)) > 1 else None

    @property
    def seeds_for_and_against(self) -> tuple[int, int] | None:
        """How many seeds have a difference of the sign of their mean, and how many one of the other sign; None as the interval.

        A seed without a difference is neither. Of a mean of 0 those above it come first.
        """
        if self.seed_interval is None or self.over != "seeds":
            return None
        sign = -1 if self.difference < 0 else 1
        return sum(sign * d > 0 for d in self.seed_differences), sum(sign * d < 0 for d in self.seed_differences)


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Comparison:
    """Compare outcomes on the same images, ``first`` and ``second`` (seeds, images), True where right.

    Seed k of the first is paired with seed k of the second. The unit is the image: the same image under three seeds
    is one observation, not three, so counts and p are not inflated by seeds.

    Interval and p are of one statistic, :func:`paired_difference`, so that p is below 0.05 exactly where the interval
    leaves out 0. With several seeds it is that of the per-image mean of the differences (our choice).

    Raises:
        ValueError: if the shapes differ or there is nothing in them.
    """
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(f"expected two equal shapes (seeds, images), found {first.shape} and {second.shape}")
    seeds, images = first.shape
    net = first.sum(0, dtype=np.int64) - second.sum(0, dtype=np.int64)
    interval, p = paired_difference(net / seeds)
    return Comparison(
        images=images,
        difference=float(net.sum()) / (seeds * images),
        interval=interval,
        p=p,
        seed_differences=tuple(float(d) for d in first.mean(1) - second.mean(1)),
        way="paired",
        first_only=int((net > 0).sum()),
        second_only=int((net < 0).sum()),
    )


def paired_difference(differences: NDArray[np.float64]) -> tuple[Interval, float]:
    """Return the interval of the mean of per-image ``differences`` (n,), each in [-1, 1], and its two-sided p.

    Wald's statistic after two images are added on which only the first, and only the second, is right: Bonett and Price
    2012, whose interval Fagerland, Lydersen and Laake 2014 recommend for paired proportions; they find the exact McNemar
    test too conservative. p is of the same statistic, so that the two cannot contradict each other.
    """
    from scipy.special import ndtr  # here, as above

    n = len(differences) + 2
    mean = float(differences.sum()) / n
    error = (((float(np.square(differences).sum()) + 2) / n - mean**2) / n) ** 0.5
    return Interval(mean - Z * error, mean + Z * error), float(2 * ndtr(-abs(mean) / error))


def resamples(n: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each of ``n`` images is in each resample (b, n), a few resamples at a time, :data:`RESAMPLES` in all.

    The same at every call, on every machine and for every version of NumPy, which promises it of the bits that are
    used here and not of its samplers. The remainder favours the first images by less than n / 2^64.
    """
    at_once = max(1, 2**20 // n)  # 8 MB of weights, and for a million images not more than one row
    kept = _kept_resamples(n) if RESAMPLES * n <= KEPT_BYTES else None
    bits = np.random.PCG64(np.random.SeedSequence(0))
    for done in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - done)
        yield draw_counts(bits, rows, n) if kept is None else kept[done : done + rows].astype(np.float64)


@lru_cache(maxsize=8)
def _kept_resamples(n: int) -> NDArray[np.uint8] | None:
    """Return the resamples of ``n`` images (RESAMPLES, n), a byte for each number; None if one does not fit into it.

    Tables ask for those of the same few datasets a hundred times, and to draw them takes longer than all else there is to compute.
    """
    counts = draw_counts(np.random.PCG64(np.random.SeedSequence(0)), RESAMPLES, n)
    return counts.astype(np.uint8) if counts.max() < 256 else None


def draw_counts(bits: np.random.PCG64, rows: int, n: int) -> NDArray[np.float64]:
    """Draw ``n`` of ``n`` with replacement, and return how often each was drawn (rows, n)."""
    drawn = (bits.random_raw(rows * n) % np.uint64(n)).astype(np.int64).reshape(rows, n)
    drawn += n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def bootstrap(values: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    """Compute ``statistic`` of the sums over images of every resample of ``values`` (n, ...): (RESAMPLES,) or (RESAMPLES, m).

    Sums of whole numbers, such as pixels, are exact in whatever order they are taken.
    """
    flat = values.reshape(len(values), -1)
    return np.concatenate(
        [statistic((weights @ flat).reshape(-1, *values.shape[1:])) for weights in resamples(len(values))]
    )


def percentiles(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ends (2, ...) of the 95 % percentile interval (Efron 1979) over resamples (B, ...), those that are NaN left out.

    Both are NaN where all are.
    """
    ends = np.full((2, *drawn.shape[1:]), np.nan)
    known = ~np.isnan(drawn).all(0)
    ends[:, known] = np.nanquantile(drawn[:, known], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return ends


def mean_intervals(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ends (2, m) of the 95 % percentile intervals, over images, of the means of ``values`` (n, m)."""
    return percentiles(bootstrap(values, lambda sums: sums / len(values)))


def resampled(first: NDArray[np.float64], second: NDArray[np.float64], statistic: Statistic) -> Comparison:
    """Compare what was counted on the same images, ``first`` and ``second`` (seeds, images, ...).

    ``statistic`` is that of the sums over images, such as mIoU of areas; it need be no mean over them. Every resample of
    the images is the same for both methods and all seeds, so what an image does to all of them alike cancels. The unit is
    the image: three seeds that agree are no more evidence than one.

    Raises:
        ValueError: if the shapes differ or there is nothing in them.
    """
    if first.shape != second.shape or first.ndim < 2 or first.size == 0:
        raise ValueError(f"expected two equal shapes (seeds, images, ...), found {first.shape} and {second.shape}")
    seeds, images = first.shape[:2]

    def differences(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the differences (b, seeds) from (b, 2 * seeds, ...)."""
        values = statistic(sums.reshape(-1, *first.shape[2:])).reshape(-1, 2, seeds)
        return values[:, 0] - values[:, 1]

    counted = np.concatenate([first, second]).swapaxes(0, 1)
    by_seed = tuple(float(d) for d in differences(counted.sum(0)[None])[0])
    drawn = bootstrap(counted, lambda sums: differences(sums).mean(1))
    return compare_resampled(images, by_seed, drawn)


def compare_resampled(images: int, by_seed: Sequence[float], drawn: NDArray[np.float64]) -> Comparison:
    """Return the comparison that follows from the differences ``by_seed`` on the images and ``drawn`` (RESAMPLES,), mean over seeds, on resamples.

    - interval: the percentiles of the resamples.
    - p: twice the share of resamples in which the difference is not on the side that it is on in most. At least
      2 / (RESAMPLES + 1).
    """
    low, high = percentiles(drawn)
    known = drawn[~np.isnan(drawn)].round(12)  # or equal sums would differ by rounding, and otherwise on each machine
    fewer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return Comparison(
        images=images,
        difference=float(np.mean(by_seed)),
        interval=Interval(float(low), float(high)),
        p=min(1.0, 2 * (fewer + 1) / (len(known) + 1)),
        seed_differences=tuple(by_seed),
        way="resampled",
    )
