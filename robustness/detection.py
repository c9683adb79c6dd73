"""Out-of-distribution detection by a classifier's confidence (ImageNet-O).

The score is the negative maximum softmax probability; out-of-distribution images are the positives (Hendrycks et al. 2021).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lutbench.evaluate.outcomes import Measurement
from lutbench.evaluate.statistics import BOOTSTRAP, RESAMPLES, Comparison, compare_resampled, draw_counts, percentiles

NAMES = ("AUPR", "AUROC", "FPR95")

AT_ONCE = 32
"""Resamples that are rated together: so few that they stay in the processor's caches, which takes half the time."""


@dataclass(frozen=True)
class Detection:
    """Scores of in-distribution and out-of-distribution images; higher means more likely out-of-distribution."""

    known: NDArray[np.float64]
    """(k,) Scores of in-distribution images."""
    unknown: NDArray[np.float64]
    """(u,) Scores of out-of-distribution images."""

    def rates(self) -> NDArray[np.float64]:
        """Return AUPR, AUROC and FPR95 (3,), between 0 and 1.

        AUPR is the average precision, as scikit-learn's, and depends on how many images of either kind there are.
        FPR95 is the least share of known images that are taken for unknown where at least 95 % of the unknown are found.
        """
        whole: NDArray[np.float64] = self._rates(np.ones((1, len(self.known))), np.ones((1, len(self.unknown))))[0]
        return whole

    def resampled_rates(self) -> NDArray[np.float64]:
        """Return the rates (RESAMPLES, 3) on resamples that keep the number of known and of unknown images; the same draws at every call."""
        known, unknown = (scores.astype(np.float64).tobytes() for scores in (self.known, self.unknown))
        return _resampled_rates(known, unknown)

    def measurements(self, protocol: str) -> list[Measurement]:
        """Return all three in percent, with percentile intervals of the bootstrap; ``protocol`` follows the names."""
        values, (low, high) = 100 * self.rates(), 100 * percentiles(self.resampled_rates())
        n = len(self.known) + len(self.unknown)
        return [
            Measurement(
                metric=f"{name}, {protocol}", value=values[i], n=n, low=low[i], high=high[i], interval=BOOTSTRAP
            )
            for i, name in enumerate(NAMES)
        ]

    def _rates(self, known: NDArray[np.float64], unknown: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rates (b, 3) where each image counts so many times: weights (b, k) and (b, u)."""
        scores = np.concatenate([self.known, self.unknown])
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        ends = np.flatnonzero(np.append(np.diff(falling) != 0, True))  # images of equal score pass together
        nothing = np.zeros_like
        false = np.cumsum(np.concatenate([known, nothing(unknown)], 1)[:, order], 1)[:, ends]
        true = np.cumsum(np.concatenate([nothing(known), unknown], 1)[:, order], 1)[:, ends]
        found, taken = true / true[:, -1:], false / false[:, -1:]
        precision = true / np.maximum(true + false, 1)
        aupr = (np.diff(found, axis=1, prepend=0) * precision).sum(1)
        before = np.concatenate([np.zeros_like(found[:, :1]), found[:, :-1]], 1)
        auroc = (np.diff(taken, axis=1, prepend=0) * (before + found) / 2).sum(1)
        enough = (20 * true >= 19 * true[:, -1:]).argmax(1)  # in whole numbers, so exactly 95 %
        return np.stack([aupr, auroc, taken[np.arange(len(taken)), enough]], 1)


@lru_cache(maxsize=16)
def _resampled_rates(known: bytes, unknown: bytes) -> NDArray[np.float64]:
    """Return the rates (RESAMPLES, 3) of scores; kept, as each method is compared with each after it is measured."""
    scores = Detection(np.frombuffer(known), np.frombuffer(unknown))
    rates = np.concatenate(
        [
            scores._rates(known_times[first : first + AT_ONCE], unknown_times[first : first + AT_ONCE])
            for known_times, unknown_times in _draws(len(scores.known), len(scores.unknown))
            for first in range(0, len(known_times), AT_ONCE)
        ]
    )
    rates.flags.writeable = False
    return rates


def compare_detections(first: Sequence[Detection], second: Sequence[Detection], rate: int) -> Comparison:
    """Compare two methods by one of :data:`NAMES` on the same images and resamples, seed k with seed k.

    Raises:
        ValueError: if they are not of as many seeds and images.
    """
    if len(first) != len(second) or len({(len(one.known), len(one.unknown)) for one in (*first, *second)}) != 1:
        raise ValueError("expected the same number of seeds and the same images for both methods")
    by_seed = tuple(float(a.rates()[rate] - b.rates()[rate]) for a, b in zip(first, second, strict=True))
    drawn = np.mean(
        [a.resampled_rates()[:, rate] - b.resampled_rates()[:, rate] for a, b in zip(first, second, strict=True)],
        axis=0,
    )
    return compare_resampled(len(first[0].known) + len(first[0].unknown), by_seed, drawn)


def _draws(known: int, unknown: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield how often each image is in each resample, (b, known) and (b, unknown), drawn apart: the two are two samples.

    From bits that NumPy promises never to change, as in :func:`lutbench.evaluate.statistics.resamples`.
    """
    bits = np.random.PCG64(np.random.SeedSequence(0))
    at_once = max(1, 2**20 // (known + unknown))
    for done in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - done)
        yield draw_counts(bits, rows, known), draw_counts(bits, rows, unknown)
