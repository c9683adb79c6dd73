"""Outcomes of a classifier on every image of a robustness dataset, and the metrics computed from them.

A dataset consists of conditions, see :mod:`robustness.kept_conditions`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from lutbench.arrays import Layout
from lutbench.evaluate.calibration import ECE
from lutbench.evaluate.image_names import check_same_images
from lutbench.evaluate.outcomes import Measurement, PerImage, names_fingerprint
from lutbench.evaluate.statistics import Comparison
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.detection import NAMES, Detection, compare_detections
from robustness.kept_conditions import CONDITIONS, ConditionOutcomes, pack, unpack
from robustness.metrics import Quantity, calibration_error, compare, corruption_quantities, gap, mean, measure, share

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["accuracy", "corruptions", "detection", "occlusion"]

REAL = "ReaL"
"""The protocol of ReaL's labels."""

KNOWN, UNKNOWN = "known", "unknown"
"""The conditions of a detection."""


_NAMES_OF = {"corruptions": r"[^/]+/\d+", "occlusion": r"drop \d/10|shuffle (\d+)x\1"}
"""How conditions are named, of which a name says how much is changed."""


@dataclass(frozen=True)
class RobustnessOutcomes(PerImage):
    """How a classifier did on a robustness dataset."""

    LOWER: ClassVar[tuple[str, ...]] = ("mCE", "CE", "error", "mean error", "gap", "FPR95", "ECE")

    layout: ClassVar[Layout] = {
        **CONDITIONS, "kind": (("U",), 0), "gap": (("U",), 1), "extra": (("U",), 1), "alexnet": (("b1",), 0), "cells": (("i8",), 0),
        "paired_gap": (("b1",), 0),
    }  # fmt: skip
    kind: Kind
    conditions: tuple[ConditionOutcomes, ...]
    """In the set's order; a condition that was preprocessed in several ways comes several times."""
    gap: tuple[str, ...] = ()
    """Two conditions whose accuracies are subtracted."""
    extra: tuple[str, ...] = ()
    """Corruptions that are reported apart."""
    alexnet: bool = False
    """Whether errors are divided by AlexNet's too."""
    paired_gap: bool = False
    """Whether the gap of two conditions of the same images has the paired interval; outcomes that were kept before there
    was one have not, since their records say another."""

    @classmethod
    def of(cls, recipe: RobustnessDatasetRecipe, conditions: Iterable[ConditionOutcomes]) -> "RobustnessOutcomes":
        """Return the outcomes of all conditions of a dataset.

        Raises:
            ValueError: if they do not go together.
        """
        kind: Kind = "accuracy" if recipe.kind == "classes" else recipe.kind
        return cls(
            kind, tuple(conditions), tuple(recipe.gap), tuple(recipe.extra), recipe.alexnet, paired_gap=bool(recipe.gap)
        )

    def __post_init__(self) -> None:
        """Check that the conditions go together.

        Raises:
            ValueError: if there are none or one twice, corruptions or occlusions are not of the same images or are not named as
                such, a detection lacks a condition or scores, or there is nothing to subtract.
        """
        times = Counter((condition.condition, condition.preprocessing) for condition in self.conditions)
        if not times or max(times.values()) > 1:
            raise ValueError("no condition, or one that appears twice in the same preprocessing")
        pattern = _NAMES_OF.get(self.kind, ".*")
        if unlike := [name for name, _ in times if not re.fullmatch(pattern, name)]:
            raise ValueError(f"{unlike[0]!r} is not a condition of {self.kind}")
        if len(self.gap) not in (0, 2) or not set(self.gap) <= {name for name, _ in times}:
            raise ValueError(f"there is no gap between {' and '.join(self.gap)}")
        if self.kind in ("corruptions", "occlusion") and len({condition.images for condition in self.conditions}) != 1:
            raise ValueError(
                "conditions with different images, but corruptions and occlusions are all of the same images"
            )
        if self.kind == "detection":
            if {condition.condition for condition in self.conditions} != {KNOWN, UNKNOWN}:
                raise ValueError(f"conditions of a detection other than {KNOWN} and {UNKNOWN}")
            if any(len(condition.score) != len(condition.label) for condition in self.conditions):
                raise ValueError("a detection without a score for every image")

    @property
    def images(self) -> str:
        """sha256 over the conditions' names and those of their images: outcomes are paired only if it is equal."""
        return names_fingerprint(f"{one.condition} {one.preprocessing} {one.images}" for one in self.conditions)

    def measurements(self) -> list[Measurement]:
        """Return all numbers of the dataset, the one that tables print first, each with its 95 % interval over images."""
        if self.kind == "detection":
            return [one for name, detection in self._detections().items() for one in detection.measurements(name)]
        return measure(self._quantities())

    def printed(self) -> list[str]:
        """Return the metrics that tables print: of several protocols and preprocessings the first, and ReaL's labels.

        Of corruptions the means, of a detection AUPR, of occlusions the means over shares and over tiles.
        """
        if self.kind == "corruptions":
            return [q.metric for q in self._errors() if q.metric == "mCE" or q.metric.startswith("mean error")][:2]
        if self.kind == "detection":
            return [f"{NAMES[0]}, {next(iter(self._detections()))}"]
        if self.kind == "occlusion":
            return [q.metric for q in self._occlusions()]
        first = self.conditions[0].preprocessing
        return [
            _metric_name("top-1", one.condition, protocol, one.preprocessing)
            for one in self.conditions
            for index, protocol in enumerate(one.protocols)
            if one.preprocessing == first and (index == 0 or protocol == REAL)
        ] + [q.metric for q in self._gaps()][:1]

    def frame(self) -> "pd.DataFrame":
        """Return a row per condition, protocol and image, see :func:`robustness.image_rows.image_rows`."""
        from robustness.image_rows import image_rows  # here, because pandas is slow to import

        return image_rows(self.conditions)

    def most_wrong(self, count: int) -> "tuple[str, pd.DataFrame]":
        """Return the images that are wrong in most conditions, see :func:`robustness.image_rows.most_wrong`."""
        from robustness.image_rows import most_wrong

        return most_wrong(self.conditions, count)

    def by_amount(self) -> dict[str, dict[int, NDArray[np.bool_]]]:
        """Return whether each image (n,) is right, in the preprocessing and under the protocol that tables print.

        By corruption and severity; or by ``drop`` and tenths of the patches, and ``shuffle`` and tiles on a side.
        """
        right: dict[str, dict[int, NDArray[np.bool_]]] = {}
        for one in self.conditions:
            if one.preprocessing == self.conditions[0].preprocessing:
                if self.kind == "corruptions":
                    name, amount = one.condition.rsplit("/", 1)
                else:
                    name, amount, _ = re.split("[ /x]", one.condition)
                right.setdefault(name, {})[int(amount)] = one.right()
        return right

    @classmethod
    def compare(cls, first: Sequence[Self], second: Sequence[Self], metric: str) -> Comparison:
        """Compare accuracies and single errors by what is right on each image, means, gaps and detections by a bootstrap over images."""
        both = [*first, *second]
        if len({tuple((of.condition, of.preprocessing) for of in one.conditions) for one in both}) != 1:
            raise ValueError("the methods were measured on different conditions")
        for conditions in zip(*(one.conditions for one in both), strict=True):
            check_same_images(conditions)
        if first[0].kind == "detection":
            name, _, protocol = metric.partition(", ")
            if name not in NAMES or protocol not in first[0]._detections():
                raise ValueError(f"there is no {metric}")
            left, right = ([one._detections()[protocol] for one in side] for side in (first, second))
            return compare_detections(left, right, NAMES.index(name))
        chosen = [[q for one in side for q in one._quantities() if q.metric == metric] for side in (first, second)]
        if not all(chosen):
            raise ValueError(f"there is no {metric}")
        return compare(*chosen)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept of it in a file."""
        return {
            "kind": np.array(self.kind), "gap": np.array(self.gap, str), "extra": np.array(self.extra, str),
            "alexnet": np.array(self.alexnet), "cells": np.array(len(self.conditions)), **pack(self.conditions),
            **({"paired_gap": np.array(True)} if self.paired_gap else {}),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "RobustnessOutcomes":
        """Return the outcomes that :meth:`arrays` gave; raises as :meth:`PerImage.from_arrays` does."""
        kind = str(arrays["kind"])
        if kind not in get_args(Kind):
            raise ValueError(f"a kind of set {kind[:80]!r}")
        conditions = unpack(arrays, int(arrays["cells"]))
        between, extra = (tuple(arrays[name].tolist()) for name in ("gap", "extra"))
        alexnet, paired_gap = bool(arrays["alexnet"]), "paired_gap" in arrays
        return cls(kind, conditions, between, extra, alexnet, paired_gap)  # type: ignore[arg-type]

    def _quantities(self) -> list[Quantity]:
        if self.kind == "corruptions":
            return self._errors()
        return [*self._occlusions(), *self._accuracies(), *self._gaps(), *self._calibrations()]

    def _occlusions(self) -> Iterator[Quantity]:
        """Means over the conditions in which patches are dropped, and over those in which tiles are shuffled."""
        if self.kind == "occlusion":
            about = {"drop": "patches dropped", "shuffle": "tiles shuffled"}
            for kind, right in self.by_amount().items():
                yield mean(f"mean top-1, {about[kind]}", np.mean(list(right.values()), axis=0))

    def _accuracies(self) -> Iterator[Quantity]:
        for one in self.conditions:
            for index, protocol in enumerate(one.protocols):
                yield share(_metric_name("top-1", one.condition, protocol, one.preprocessing), one.right(index))

    def _calibrations(self) -> Iterator[Quantity]:
        """Yield the calibration error of every condition whose scores were kept, for the first preprocessing and protocol, as tables print."""
        for one in self.conditions:
            if len(one.score) and one.preprocessing == self.conditions[0].preprocessing:
                named = _metric_name(ECE, one.condition, one.protocols[0], one.preprocessing)
                yield calibration_error(named, one.score[one.rank[0] >= 0], one.right())

    def _gaps(self) -> Iterator[Quantity]:
        if self.gap:
            first, second = ([one for one in self.conditions if one.condition == name] for name in self.gap)
            for one, other in zip(first, second, strict=True):
                for index, protocol in enumerate(one.protocols):
                    named = _metric_name("gap", f"{one.condition} - {other.condition}", protocol, one.preprocessing)
                    same = self.paired_gap and one.images == other.images
                    yield gap(named, one.right(index), other.right(index), same_images=same)

    def _errors(self) -> list[Quantity]:
        errors = {
            corruption: {severity: ~right for severity, right in of.items()}
            for corruption, of in self.by_amount().items()
        }
        return corruption_quantities(errors, self.extra, self.alexnet)

    def _detections(self) -> dict[str, Detection]:
        """Return the scores by protocol and preprocessing; only known images that count."""
        made, by_name = {}, {(one.condition, one.preprocessing): one for one in self.conditions}
        for preprocessing in dict.fromkeys(one.preprocessing for one in self.conditions):
            known, unknown = by_name[KNOWN, preprocessing], by_name[UNKNOWN, preprocessing]
            scores = -known.score[known.rank[0] >= 0].astype(np.float64), -unknown.score.astype(np.float64)
            made[_metric_name(known.protocols[0], preprocessing)] = Detection(*scores)
        return made


def _metric_name(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
