"""Metrics on robustness datasets, from per-image outcomes: accuracies, corruption errors, and their intervals.

Every metric is a statistic of sums over images, so one bootstrap gives all intervals, and two methods are compared on the same
resamples. Shares are between 0 and 1 here; measurements are in percent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lutbench.evaluate.calibration import differences, ece, reflected
from lutbench.evaluate.outcomes import Measurement
from lutbench.evaluate.statistics import (
    BASIC,
    BOOTSTRAP,
    Comparison,
    Interval,
    Statistic,
    bootstrap,
    paired,
    paired_difference,
    percentiles,
    resampled,
    wilson,
)

ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Top-1 error of AlexNet on ImageNet-C, mean over five severities, by which mCE divides (google-research/augmix
imagenet.py). These fifteen are ImageNet-C."""

ALEXNET_EXTRA_ERROR = {"speckle_noise": 0.8454, "gaussian_blur": 0.7871, "spatter": 0.7175, "saturate": 0.6583}
"""Of the four corruptions meant for validation, which are in no mCE (clovaai/assembled-cnn mce/eval_robustness.py)."""

ALEXNET_SEVERITIES = (1, 2, 3, 4, 5)

Method = Literal["Wilson", "Newcombe", "Bonett-Price", "bootstrap over images", "basic bootstrap over images"]


@dataclass(frozen=True)
class Quantity:
    """One number as a statistic of sums over images."""

    metric: str
    values: NDArray[np.float64]
    """(n, m) What each image adds to the sums."""
    statistic: Statistic
    """A function from sums (b, m) to values (b,)."""
    method: Method
    """How its interval is computed."""

    @property
    def value(self) -> float:
        """Between 0 and 1 for a share."""
        return float(self.statistic(self.values.sum(0)[None])[0])


def share(metric: str, hits: NDArray[np.bool_]) -> Quantity:
    """Return the share of ``hits`` (n,), with Wilson's interval."""
    return mean(metric, hits, "Wilson")


def mean(metric: str, values: NDArray[Any], method: Method = "bootstrap over images") -> Quantity:
    """Return the mean of ``values`` (n,), with a bootstrap over images if no other ``method`` is given."""
    column = np.asarray(values, np.float64)[:, None]
    return Quantity(metric, column, lambda sums: sums[:, 0] / len(column), method)


def gap(metric: str, first: NDArray[np.bool_], second: NDArray[np.bool_], *, same_images: bool = False) -> Quantity:
    """Return the share of ``first`` (k,) minus that of ``second`` (l,).

    Of other images with Newcombe's interval (1998, method 10); of the same images in the same order, on other backgrounds,
    with the paired one (:func:`lutbench.evaluate.statistics.paired_difference`): what makes an image hard counts once.
    """
    if same_images:
        return mean(metric, first.astype(np.float64) - second, "Bonett-Price")
    values = np.zeros((len(first) + len(second), 4))
    values[: len(first), :2] = np.stack([first, np.ones_like(first)], 1)
    values[len(first) :, 2:] = np.stack([second, np.ones_like(second)], 1)
    return Quantity(metric, values, lambda sums: sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3], "Newcombe")


def calibration_error(metric: str, confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> Quantity:
    """Return the expected calibration error of the ``confidence`` (n,) in predictions, see :mod:`lutbench.evaluate.calibration`."""
    values = differences(confidence, right)
    return Quantity(metric, values, lambda sums: ece(sums, len(values)), "basic bootstrap over images")


def corruption_quantities(
    errors: Mapping[str, Mapping[int, NDArray[np.bool_]]], extra: Sequence[str] = (), alexnet: bool = False
) -> list[Quantity]:
    """Return all numbers of a corrupted set from ``errors[corruption][severity]`` (n,), True where the classifier is wrong.

    A corruption's error is the mean over its severities. First come the means over corruptions, without ``extra``:
    ``mCE`` (Hendrycks and Dietterich 2019: every error over AlexNet's; only if ``alexnet`` and all fifteen corruptions
    at five severities are there) and the raw ``mean error``. Then every corruption (``error, fog``; with ``alexnet`` its
    ``CE, fog``), the extra ones and their mean apart, and the raw mean over all of them together, which some publish.
    Then every severity (``error, fog 3``).

    An image counts in all conditions at once, so the bootstrap knows that they are the same images.
    """
    by_corruption = {name: np.mean(list(severities.values()), axis=0) for name, severities in errors.items()}
    main = [name for name in by_corruption if name not in extra]
    apart = [name for name in by_corruption if name in extra]
    known = ALEXNET_ERROR | ALEXNET_EXTRA_ERROR if alexnet else {}
    relative = {name: by_corruption[name] / known[name] for name in by_corruption if name in known}
    made = []
    if alexnet and all(tuple(sorted(errors.get(name, ()))) == ALEXNET_SEVERITIES for name in ALEXNET_ERROR):
        made.append(mean("mCE", np.mean([relative[name] for name in ALEXNET_ERROR], axis=0)))
    for names, kind in ((main, ""), (apart, "extra "), ([*main, *apart] if main and apart else [], "")):
        if names:
            label = f"mean error, {len(names)} {kind}corruption{'s' if len(names) > 1 else ''}"
            made.append(mean(label, np.mean([by_corruption[name] for name in names], axis=0)))
    for name in (*main, *apart):
        made.append(mean(f"error, {name}", by_corruption[name]))
        made += [mean(f"CE, {name}", relative[name])] if name in relative else []
    return made + [
        share(f"error, {name} {severity}", errors[name][severity])
        for name in (*main, *apart)
        for severity in errors[name]
    ]


def measure(quantities: Sequence[Quantity]) -> list[Measurement]:
    """Return each quantity in percent with its 95 % interval; those that need a bootstrap share one."""
    means, ends = [one for one in quantities if one.method == BOOTSTRAP], dict[str, Sequence[float]]()
    if means:
        values = np.concatenate([one.values for one in means], 1)
        drawn = percentiles(bootstrap(values, lambda sums: sums / len(values)))
        ends = dict(zip((one.metric for one in means), drawn.T.tolist(), strict=True))
    made = []
    for one in quantities:
        low, high = ends[one.metric] if one.metric in ends else _apart(one)
        value, n = 100 * one.value, len(one.values)
        made.append(
            Measurement(metric=one.metric, value=value, n=n, low=100 * low, high=100 * high, interval=one.method)
        )
    return made


def compare(first: Sequence[Quantity], second: Sequence[Quantity]) -> Comparison:
    """Compare two methods by one number on the same images, seed k of the first with seed k of the second.

    A share by what is right and wrong on each image, any other number by a bootstrap of the difference over images.

    Raises:
        ValueError: if they are not of the same metric and as many seeds and images.
    """
    if len({one.metric for one in (*first, *second)}) != 1:
        raise ValueError("expected one metric of every seed of both methods")
    values = [np.stack([one.values for one in seeds]) for seeds in (first, second)]
    if first[0].method == "Wilson":
        return paired(values[0][..., 0] > 0, values[1][..., 0] > 0)
    return resampled(values[0], values[1], first[0].statistic)


def _apart(quantity: Quantity) -> Interval:
    """Return the interval of a quantity that shares no bootstrap with others: in closed form, or reflected."""
    if quantity.method == BASIC:
        drawn = bootstrap(quantity.values, lambda sums: quantity.statistic(sums)[:, None])
        return reflected(quantity.value, percentiles(drawn)[:, 0])
    sums = quantity.values.sum(0)
    if quantity.method == "Wilson":
        return wilson(int(sums[0]), len(quantity.values))
    if quantity.method == "Bonett-Price":
        return paired_difference(quantity.values[:, 0])[0]
    (p, (low_p, high_p)), (q, (low_q, high_q)) = (
        (hits / n, wilson(int(hits), int(n))) for hits, n in (sums[:2], sums[2:])
    )
    below = ((p - low_p) ** 2 + (high_q - q) ** 2) ** 0.5
    above = ((high_p - p) ** 2 + (q - low_q) ** 2) ** 0.5
    return Interval(float(p - q - below), float(p - q + above))
