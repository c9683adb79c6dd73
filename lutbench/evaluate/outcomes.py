"""Outcomes of a classifier on every image of a dataset, and the metrics computed from them."""

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from lutbench.arrays import Layout, small_integers
from lutbench.evaluate.calibration import ECE, NLL, calibration, compare_calibration
from lutbench.evaluate.image_names import (
    ARRAY,
    KEY,
    check_same_images,
    folder_of_class,
    labelled_names,
    packed_names,
    unpacked_names,
)
from lutbench.evaluate.scores import SCORES, Scores
from lutbench.evaluate.statistics import (
    BOOTSTRAP,
    Comparison,
    compare_resampled,
    paired,
    percentiles,
    resamples,
    wilson,
)
from lutbench.recipes.base import Metric

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_array

PER_CLASS: Metric = "mean per class"

AMONG = {"top-1": 1, "top-5": 5}
"""Metrics for which an image is right if its label is among the first so many classes."""


class Measurement(BaseModel):
    """One number, which is finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    metric: str
    """``top-1``, ``top-5``, ``mIoU``, ``IoU sky``, ``reconstruction loss`` ..."""
    value: float
    unit: str = "%"
    """``%``, or empty for a plain number."""
    n: int | None = None
    """How many images it is over."""
    low: float | None = None
    high: float | None = None
    """Ends of its 95 % interval over images, in the same unit."""
    interval: str = ""
    """Name of the interval's method."""

    @property
    def decimals(self) -> int:
        """How many decimals its value and the ends of its interval are printed with, see :func:`decimals`."""
        half = 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2
        return decimals(self.unit, self.value, half)

    def text(self, unit: str = "") -> str:
        """Return ``24.10 [23.98, 24.21]``, the unit between the two if it is given; without an interval the value."""
        value, *ends = (
            "" if number is None else f"{round(number, self.decimals) + 0.0:.{self.decimals}f}"  # never -0.0
            for number in (self.value, self.low, self.high)
        )
        return " ".join(filter(None, (value, unit, f"[{', '.join(ends)}]" if all(ends) else "")))


class PerImage(ABC):
    """Outcomes of a run on every image, from which its metrics are computed. Each kind of task has its own type."""

    LOWER: ClassVar[tuple[str, ...]] = ()
    """The metrics, by what their names begin with, of which lower values are better."""
    RESULT: ClassVar[tuple[str, ...]] = ()
    """The metrics that a run's result is told by in one line; the first measurement if none is named."""

    layout: ClassVar[Layout]
    """The arrays that are kept of it in a file."""
    images: Any
    """sha256 over the images' names: outcomes are compared image by image only if it is equal."""

    @abstractmethod
    def measurements(self) -> list[Measurement]:
        """Return all numbers, the one that tables print first."""

    def measurement(self, metric: str) -> Measurement | None:
        """Return the measurement of ``metric``, be it recorded or not; None if it does not follow from the outcomes."""
        return next((m for m in self.measurements() if m.metric == metric), None)

    def printed(self) -> list[str]:
        """Return the metrics that tables print."""
        return [self.measurements()[0].metric]

    @classmethod
    @abstractmethod
    def compare(cls, first: Sequence[Self], second: Sequence[Self], metric: str) -> Comparison:
        """Compare two methods by ``metric`` on the same images, seed k of the first with seed k of the second.

        Differences are between shares, not in percent; of metrics of another unit in that.

        Raises:
            ValueError: if images differ, or there is no such metric.
        """

    @abstractmethod
    def frame(self) -> "pd.DataFrame":
        """Return what happened on every image, with its name under ``image``, in the set's order, a row per image.

        Of a segmentation a row per image, label and prediction; of a robustness dataset per condition, protocol and image.
        """

    def most_wrong(self, count: int) -> "tuple[str, pd.DataFrame]":
        """Return a sentence that says what most wrong means here, and the ``count`` images of which that is true, by name.

        Empty where no image is right or wrong.
        """
        import pandas as pd  # here, because it is slow to import

        return "", pd.DataFrame()

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept of it in a file."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the outcomes that :meth:`arrays` gave, of which names, types and dimensions are those of :attr:`layout`.

        Raises:
            KeyError: if one is missing.
            ValueError: if lengths differ, or a value is none that can occur.
        """


@dataclass(frozen=True)
class Outcomes(PerImage):
    """Outcomes of a classifier on every image of a dataset, in the order of the dataset."""

    LOWER: ClassVar[tuple[str, ...]] = ("ECE", NLL)

    layout: ClassVar[Layout] = {
        **dict.fromkeys(("label", "prediction", "rank"), (("i2", "i4"), 1)),
        "images": (("U",), 0),
        "metric": (("U",), 0),
        KEY: ARRAY,
        **SCORES,
    }
    label: NDArray[np.integer[Any]]
    """(n,) The class of the image."""
    prediction: NDArray[np.integer[Any]]
    """(n,) The class with the highest score."""
    rank: NDArray[np.integer[Any]]
    """(n,) Position of the label among the classes in descending order of score; 0 where it is the prediction."""
    images: str
    """sha256 over the images' names, see :func:`names_fingerprint`: outcomes are paired only if it is equal."""
    metric: Metric = "top-1"
    """The measurement that comes first, which tables print."""
    names: tuple[str, ...] = ()
    """The images' names, below the split's folder or by row; empty in records of before they were kept."""
    scores: Scores | None = None
    """Probabilities of the classes; None in old records without them, for which calibration is unknown."""

    @classmethod
    def of(cls, label: ArrayLike, prediction: ArrayLike, rank: ArrayLike, names: Iterable[str]) -> "Outcomes":
        """Check the outcomes of the images ``names`` and keep them small: int16 where the classes allow.

        Raises:
            ValueError: if lengths differ, or a rank is 0 where the prediction is not the label, or the reverse.
        """
        labels, predictions, ranks = (small_integers(np.asarray(values)) for values in (label, prediction, rank))
        listed = list(names)
        if {labels.shape, predictions.shape, ranks.shape} != {(len(listed),)}:
            raise ValueError(
                f"expected 3 arrays of shape ({len(listed)},), one value for every image, "
                f"found {labels.shape}, {predictions.shape} and {ranks.shape}"
            )
        if ((labels == predictions) != (ranks == 0)).any():
            raise ValueError(
                "rank must be 0 exactly where the prediction is the label: compute both from the same ordering"
            )
        return cls(labels, predictions, ranks, names_fingerprint(listed), names=tuple(listed))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept of it in a file."""
        metric = {} if self.metric == "top-1" else {"metric": np.array(self.metric)}
        return {
            "label": self.label, "prediction": self.prediction, "rank": self.rank, "images": np.array(self.images), **metric,
            **packed_names(self.names), **(self.scores.arrays() if self.scores else {}),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Outcomes":
        """Return the outcomes that :meth:`arrays` gave; raises as :meth:`PerImage.from_arrays` does."""
        metric = PER_CLASS if str(arrays.get("metric", "")) == PER_CLASS else "top-1"
        label, prediction, rank = (arrays[name] for name in ("label", "prediction", "rank"))
        if not len(label) == len(prediction) == len(rank) > 0:
            raise ValueError(f"{len(label)} labels, {len(prediction)} predictions and {len(rank)} ranks")
        if (
            min(values.min() for values in (label, prediction, rank)) < 0
            or ((label == prediction) != (rank == 0)).any()
        ):
            raise ValueError(
                "a negative label, prediction or rank, or an image whose rank is 0 although its prediction is wrong, or "
                "not 0 although it is right"
            )
        images = fingerprint_text(arrays["images"])
        names = unpacked_names(arrays, len(label), images)
        scores = Scores.from_arrays(arrays, label, prediction, rank)
        return cls(label, prediction, rank, images, metric, names, scores)

    def right(self, among: int = 1) -> NDArray[np.bool_]:
        """Return whether the label is among the first so many classes, (n,)."""
        return np.asarray(self.rank < among)

    def measurements(self) -> list[Measurement]:
        """Top-1 and top-5 accuracy in percent, each with its Wilson interval, and before them the mean per class if asked.

        Behind them, where scores were kept, :func:`lutbench.evaluate.calibration.calibration`.
        """
        first = [self._mean_per_class()] if self.metric == PER_CLASS else []
        made = (Measurement(**one._asdict()) for one in calibration(self.scores, self.right()))
        return [*first, *map(self._accuracy, AMONG), *made]

    def measurement(self, metric: str) -> Measurement | None:
        """Return the measurement of ``metric``, be it recorded or not: the mean per class can always be had."""
        return self._mean_per_class() if metric == PER_CLASS else super().measurement(metric)

    @classmethod
    def compare(cls, first: Sequence[Self], second: Sequence[Self], metric: str) -> Comparison:
        """Compare top-1 or top-5 by what is right on each image; the mean per class, ECE and NLL by a bootstrap over images."""
        check_same_images([*first, *second])
        if metric in (ECE, NLL):
            one, other = ([(run.scores, run.right()) for run in seeds] for seeds in (first, second))
            return compare_calibration(one, other, metric)
        if metric == PER_CLASS:
            return compare_per_class(first, second)
        if metric not in AMONG:
            raise ValueError(f"there is no {metric}")
        return paired(*(np.stack([one.right(AMONG[metric]) for one in seeds]) for seeds in (first, second)))

    def frame(self) -> "pd.DataFrame":
        """Return a row per image: ``image``, ``label``, ``prediction``, ``rank``, whether it is ``right``, and scores if kept."""
        import pandas as pd

        names = labelled_names(self.names, len(self.label))
        columns = {"label": self.label, "prediction": self.prediction, "rank": self.rank, "right": self.right()}
        return pd.DataFrame({"image": names, **columns, **(self.scores.columns() if self.scores else {})})

    def most_wrong(self, count: int) -> "tuple[str, pd.DataFrame]":
        """Return the images whose class has the most classes before it in descending order of score."""
        folders = folder_of_class(self.names, self.label)
        wrong = self.frame().query("rank > 0").nlargest(count, "rank")
        for column in ("label", "prediction"):
            wrong[column] = [folders.get(of, str(of)) for of in wrong[column]]
        columns = ["image", "class", "predicted", "rank"]
        if self.scores:
            columns.append("confidence")
            wrong["confidence"] = wrong["confidence"].round(3)
        return (
            "Most wrong: images with the highest rank, the number of classes that scored higher than the label.",
            wrong.rename(columns={"label": "class", "prediction": "predicted"})[columns],
        )

    def per_class(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean over classes of the accuracy on each (b,), between 0 and 1, with images weighed by ``weights`` (b, n).

        Classes that no image with a weight is of are left out.
        """
        images = weights @ self._classes
        right = (weights * self.right()) @ self._classes
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nanmean(right / images, axis=1))

    @cached_property
    def _classes(self) -> "csr_array":
        """(n, C) 1 where an image is of a class, of those that occur; sparse, for sets of thousands of classes."""
        from scipy.sparse import csr_array  # here, because to read records needs none

        names, index = np.unique(self.label, return_inverse=True)
        n = len(index)
        return csr_array((np.ones(n), (np.arange(n), index)), shape=(n, len(names)))

    def _mean_per_class(self) -> Measurement:
        n = len(self.label)
        drawn = np.concatenate([self.per_class(weights) for weights in resamples(n)])
        low, high = percentiles(drawn)
        value = float(self.per_class(np.ones((1, n)))[0])
        return Measurement(
            metric=PER_CLASS, value=100 * value, n=n, low=100 * float(low), high=100 * float(high), interval=BOOTSTRAP
        )  # fmt: skip

    def _accuracy(self, metric: str) -> Measurement:
        n, right = len(self.rank), int(self.right(AMONG[metric]).sum())
        low, high = wilson(right, n)
        return Measurement(metric=metric, value=100 * right / n, n=n, low=100 * low, high=100 * high, interval="Wilson")


def compare_per_class(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> Comparison:
    """Compare two methods in mean per class on the same images, with a set of outcomes for every seed."""
    n = len(first[0].label)

    def differences(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(
            [one.per_class(weights) - other.per_class(weights) for one, other in zip(first, second, strict=True)], 1
        )

    drawn = np.concatenate([differences(weights).mean(1) for weights in resamples(n)])
    return compare_resampled(n, differences(np.ones((1, n)))[0].tolist(), drawn)


def decimals(unit: str, value: float, half_width: float = 0.0) -> int:
    """Return how many decimals a number is printed with: one if it is a percentage.

    Else so many that half the width of its interval has two significant digits, and the number at most four; of a number without an
    interval four, and none if it is whole (our choice).
    """
    if unit == "%":
        return 1
    if half_width > 0:
        return min(_decimals(half_width, 2), _decimals(max(abs(value), half_width), 4))
    return 0 if value == round(value) else _decimals(abs(value), 4)


def _decimals(size: float, significant: int) -> int:
    return max(0, significant - 1 - math.floor(math.log10(size)))


def names_fingerprint(names: Iterable[str]) -> str:
    """Return the sha256 over names in order, hexadecimal."""
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def fingerprint_text(array: NDArray[Any]) -> str:
    """Return a fingerprint that was kept as an array.

    Raises:
        ValueError: if it is none.
    """
    if not re.fullmatch("[0-9a-f]{64}", str(array)):
        raise ValueError(f"a fingerprint {str(array)[:80]!r} of the images' names")
    return str(array)
