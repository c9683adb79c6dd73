"""Outcomes of a segmentation on every image of a dataset, and the metrics computed from them.

Kept per image are the pixels of every pair of label and prediction that occurs. IoU, unlike accuracy, is no mean over
images: intersections and unions are summed over all of them first, as ADE20K's and MMSegmentation's is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lutbench.arrays import Layout
from lutbench.evaluate.image_names import ARRAY, KEY, check_same_images, labelled_names, packed_names, unpacked_names
from lutbench.evaluate.outcomes import Measurement, PerImage, fingerprint_text, names_fingerprint
from lutbench.evaluate.statistics import BOOTSTRAP, Comparison, bootstrap, percentiles, resampled
from lutbench.files import check_plain

if TYPE_CHECKING:
    import pandas as pd

IOU_OF = "IoU "
"""Prefix of a class's name in its metric."""

MAX_AREAS = 2**25
"""Of images times classes in a file: 5 times ADE20K's full set of 3,000 classes; their areas take 0.8 GB."""

_COUNTS = ("image", "label", "prediction", "count")
"""The fields that differ from scale to scale."""


@dataclass(frozen=True)
class Confusions(PerImage):
    """How a segmentation did on every image of a set, in the set's order; ignored pixels are not in it."""

    layout: ClassVar[Layout] = {
        **{scale + name: (("i2", "i4", "i8"), 1) for scale in ("", "multi_scale_") for name in _COUNTS},
        "n": (("i8",), 0), "classes": (("U",), 1), "images": (("U",), 0), KEY: ARRAY,
    }  # fmt: skip
    image: NDArray[np.int32]
    """(k,) Index of the image in the dataset, ascending."""
    label: NDArray[np.int16]
    """(k,) Class of the label."""
    prediction: NDArray[np.int16]
    """(k,) Class that was predicted."""
    count: NDArray[np.int64]
    """(k,) Pixels of this image with this label and this prediction; at least 1."""
    n: int
    """Images in the set."""
    classes: tuple[str, ...]
    """Their names; C of them."""
    images: str
    """sha256 over the images' names, see :func:`names_fingerprint`: confusions are paired only if it is equal."""
    multi_scale: "Confusions | None" = None
    """Confusions of the same images, predicted at several scales and flipped."""
    names: tuple[str, ...] = ()
    """The images' names below the split's folder; empty in records of before they were kept."""

    @classmethod
    def of(
        cls,
        counts: Iterable[NDArray[np.integer[Any]]],
        classes: Sequence[str],
        names: Iterable[str],
        multi_scale: "Confusions | None" = None,
    ) -> "Confusions":
        """Check the counts of the images ``names``, and put them together.

        Of each image rows (k, 3) of label, prediction and pixels, for the pairs that occur, ascending.

        Raises:
            ValueError: if there are not as many counts as names, a row names no class, a pair has no pixel or comes
                twice, no pixel counts at all, or ``multi_scale`` is of other images or classes.
        """
        listed = list(names)
        rows = [np.zeros((4, 0), np.int64)]
        for index, (name, one) in enumerate(zip(listed, counts, strict=True)):
            label, prediction, pixels = one.T.astype(np.int64)
            known = ((one[:, :2] >= 0) & (one[:, :2] < len(classes))).all()
            if not known or (pixels < 1).any() or (np.diff(label * len(classes) + prediction) < 1).any():
                raise ValueError(
                    f"{name}: expected the numbers of pixels by label and prediction of {len(classes)} classes, in ascending order"
                )
            rows.append(np.stack([np.full(len(one), index), label, prediction, pixels]))
        image, label, prediction, count = np.concatenate(rows, 1)
        if not len(count):
            raise ValueError("no pixel of any image has a label")
        made = cls(
            image.astype(np.int32), label.astype(np.int16), prediction.astype(np.int16), count, len(listed),
            tuple(classes), names_fingerprint(listed), multi_scale, tuple(listed),
        )  # fmt: skip
        if multi_scale and (multi_scale.images, multi_scale.classes) != (made.images, made.classes):
            raise ValueError("the multi-scale predictions are of other images or classes")
        return made

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept of it in a file."""
        own: dict[str, NDArray[Any]] = {
            "image": self.image, "label": self.label, "prediction": self.prediction, "count": self.count,
            "n": np.array(self.n), "classes": np.array(self.classes), "images": np.array(self.images),
            **packed_names(self.names),
        }  # fmt: skip
        others = self.multi_scale.arrays() if self.multi_scale else {}
        return own | {f"multi_scale_{name}": others[name] for name in _COUNTS if others}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Confusions":
        """Return the outcomes that :meth:`arrays` gave; raises as :meth:`PerImage.from_arrays` does."""
        classes, n, images = tuple(arrays["classes"].tolist()), int(arrays["n"]), fingerprint_text(arrays["images"])
        check_plain(list(classes), "classes")
        if len(set(classes)) != len(classes) or not 0 < n * len(classes) <= MAX_AREAS:
            raise ValueError(
                f"{n} images of {len(classes)} classes, which are too many or none, or two classes with the same name"
            )
        names = unpacked_names(arrays, n, images)

        def scale(prefix: str, multi_scale: "Confusions | None" = None) -> "Confusions":
            """Return the counts of the arrays whose names begin with ``prefix``."""
            image, label, prediction, count = (arrays[prefix + name] for name in _COUNTS)
            if not len(image) == len(label) == len(prediction) == len(count) > 0:
                raise ValueError("arrays of counts that differ in length or are empty")
            for values, first, bound in (
                (image, 0, n),
                (label, 0, len(classes)),
                (prediction, 0, len(classes)),
                (count, 1, 2**40),
            ):
                if values.min() < first or values.max() >= bound:
                    raise ValueError(f"numbers from {values.min()} to {values.max()}, outside {first} to {bound - 1}")
            pair = (image.astype(np.int64) * len(classes) + label) * len(classes) + prediction
            if (np.diff(pair) < 1).any():
                raise ValueError("pairs of label and prediction that appear twice, or are not in ascending order")
            return cls(image, label, prediction, count, n, classes, images, multi_scale, names)

        return scale("", scale("multi_scale_") if "multi_scale_count" in arrays else None)

    @classmethod
    def compare(cls, first: Sequence[Self], second: Sequence[Self], metric: str) -> Comparison:
        """Compare mIoU by a bootstrap over images."""
        if metric != "mIoU":
            raise ValueError(f"methods cannot be compared by {metric}, only by mIoU")
        check_same_images([*first, *second])
        areas = [np.stack([one.areas() for one in seeds]) for seeds in (first, second)]
        return resampled(areas[0], areas[1], mean_iou)

    def frame(self) -> "pd.DataFrame":
        """Return a row per image, label and prediction that occurs: ``image``, the classes' names, and their ``pixels``."""
        import pandas as pd

        names, classes = labelled_names(self.names, self.n), np.array(self.classes)
        found = {"label": classes[self.label], "prediction": classes[self.prediction], "pixels": self.count}
        return pd.DataFrame({"image": [names[row] for row in self.image.tolist()], **found})

    def most_wrong(self, count: int) -> "tuple[str, pd.DataFrame]":
        """Return the images with the lowest mean IoU over the classes that occur in them."""
        import pandas as pd

        areas, names = self.areas(), labelled_names(self.names, self.n)
        right = _share(areas[:, 0].sum(-1), areas[:, 1].sum(-1))
        found = pd.DataFrame({"image": names, "mIoU": 100 * mean_iou(areas), "right": 100 * right})
        return (
            "Most wrong: images with the lowest mean IoU over the classes in their labels or predictions, with their pixel accuracy, both "
            "in percent.",
            found.dropna().nsmallest(count, "mIoU").round(1),
        )

    def areas(self) -> NDArray[np.float64]:
        """Pixels (n, 3, C) of every image and class: of the intersection, of the label, of the prediction."""
        right = self.count * (self.label == self.prediction)
        counted = ((self.label, right), (self.label, self.count), (self.prediction, self.count))
        return np.stack([self._by_class(of, pixels) for of, pixels in counted], 1)

    def _by_class(self, of: NDArray[np.int16], pixels: NDArray[np.int64]) -> NDArray[np.float64]:
        cell = self.image.astype(np.int64) * len(self.classes) + of
        areas = np.bincount(cell, pixels, self.n * len(self.classes)).astype(np.float64)
        return areas.reshape(self.n, len(self.classes))

    def measurements(self) -> list[Measurement]:
        """Return, in percent: mIoU, mAcc, aAcc, perhaps ``mIoU, multi-scale``, and ``IoU NAME`` of every class that occurs.

        They equal those of MMSegmentation's IoUMetric: a class that is neither in a label nor in a prediction has no
        IoU and is left out of the mean; so is, from mAcc, one that is in no label. Intervals hold 95 % and are the
        percentiles over resamples of the images. Of a class, n are the images that it is in; in a single one, there
        is nothing to resample, and no interval.
        """
        areas = self.areas()
        occurs_in = (areas[:, 1:].sum(1) > 0).sum(0)
        names = ["mIoU", "mAcc", "aAcc", *(f"{IOU_OF}{name}" for name in self.classes)]
        made = list(_measured(areas, names, [self.n] * 3 + occurs_in.tolist()))
        if self.multi_scale:
            several = _measured(self.multi_scale.areas(), ["mIoU, multi-scale"], [self.n])
            made[3:3] = [next(several)]
        return made


def mean_iou(areas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mIoU (...,) from areas (..., 3, C): the mean over the classes that occur, between 0 and 1; NaN if none does."""
    return _mean(_iou(areas))


def _scores(areas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores (..., 3 + C) from areas (..., 3, C): mIoU, mAcc, aAcc and every class's IoU, between 0 and 1."""
    intersection, label = areas[..., 0, :], areas[..., 1, :]
    iou = _iou(areas)
    means = _mean(iou), _mean(_share(intersection, label)), _share(intersection.sum(-1), label.sum(-1))
    return np.concatenate([np.stack(means, -1), iou], -1)


def _iou(areas: NDArray[np.float64]) -> NDArray[np.float64]:
    intersection, label, prediction = np.moveaxis(areas, -2, 0)
    return _share(intersection, label + prediction - intersection)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis, NaN left out; NaN if there is nothing else."""
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(-1), known.sum(-1).astype(np.float64))


def _measured(areas: NDArray[np.float64], names: Sequence[str], images: Sequence[int]) -> Iterator[Measurement]:
    """Yield the first of :func:`_scores` in percent, those that are not NaN, with their intervals."""
    scores = 100 * _scores(areas.sum(0))
    low, high = 100 * percentiles(bootstrap(areas, lambda drawn: _scores(drawn)[:, : len(names)]))
    for index, (name, n) in enumerate(zip(names, images, strict=True)):
        if np.isnan(scores[index]):
            continue
        ends = {"low": low[index], "high": high[index], "interval": BOOTSTRAP} if n > 1 else {}
        yield Measurement(metric=name, value=scores[index], n=n, **ends)
