"""What a classifier did on every image of a shifted set, from which all its numbers follow.

A set consists of cells: its parts, a corruption at a severity, a share of dropped patches. Of every image of a cell are
kept its label and, under every protocol (which outputs compete, which answers are right), the prediction and the place
of the first right answer: 4 bytes a protocol, before compression 28 MB for ImageNet-C with its extras.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutbench.evaluate.outcomes import Measurement, PerImage, names_fingerprint
from lutbench.evaluate.statistics import Paired, Resampled
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.detection import NAMES, Detection, compare_detections
from robustness.metrics import Quantity, compare, corruption_quantities, gap, mean, measure, share

Kind = Literal["accuracy", "corruptions", "detection", "occlusion"]

REAL = "ReaL"
"""The protocol of ReaL's labels."""

KNOWN, UNKNOWN = "known", "unknown"
"""The cells of a detection."""


@dataclass(frozen=True)
class ConditionOutcomes:
    """How a classifier did on every image of one cell, seen in one way, in the cell's order."""

    cell: str
    """``fog/3``, ``matched-frequency``, ``drop 3/10``; empty for a set without parts."""
    seen: str
    """``bicubic`` or ``bilinear`` where images were resized, else empty."""
    protocols: tuple[str, ...]
    """``200 classes``, ``1000 classes``, ``ReaL``; the first is what tables print."""
    label: NDArray[np.integer[Any]]
    """(n,) Place of the image's folder among the cell's."""
    prediction: NDArray[np.integer[Any]]
    """(p, n) The class with the highest score among those that compete, by its place among all."""
    rank: NDArray[np.integer[Any]]
    """(p, n) Place, among those that compete, of the first right answer: 0 where it is the prediction, their number
    where none is right, -1 for an image that has no answer and is not counted."""
    score: NDArray[np.float32]
    """(n,) Highest softmax among the first protocol's classes; (0,) where it is not needed."""
    images: str
    """sha256 over the images' names: outcomes are paired only if it is equal."""

    @classmethod
    def of(
        cls,
        cell: str,
        seen: str,
        protocols: Sequence[str],
        label: ArrayLike,
        places: ArrayLike,
        names: Iterable[str],
        scored: bool = False,
    ) -> "ConditionOutcomes":
        """From ``places`` (n, p, 3), which :class:`robustness.protocols.Asked` gave, and the images' names.

        Raises:
            ValueError: if lengths differ, or a classifier's outputs were not finite.
        """
        listed, values, labels = list(names), np.asarray(places), np.asarray(label)
        expected = (len(listed), len(protocols), 3)
        if values.shape != expected or labels.shape != (len(listed),):
            raise ValueError(f"expected places {expected} and a label each, found {values.shape} and {labels.shape}")
        if (values[..., 0] < 0).any():
            raise ValueError("a prediction is negative: the classifier's outputs were not finite")
        return cls(
            cell,
            seen,
            tuple(protocols),
            _small(labels),
            _small(values[..., 0].T),
            _small(values[..., 1].T),
            np.ascontiguousarray(values[: len(listed) if scored else 0, 0, 2], np.float32),
            names_fingerprint(listed),
        )

    def right(self, protocol: int = 0) -> NDArray[np.bool_]:
        """(m,) Whether the prediction is right, of the images that count under a protocol."""
        rank = self.rank[protocol]
        return np.asarray(rank[rank >= 0] == 0)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of it in a file."""
        return {name: np.array(getattr(self, name)) for name in _FIELDS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "ConditionOutcomes":
        """The reverse of :meth:`arrays`.

        Raises:
            KeyError: if they are not those of a cell.
        """
        cell, seen, protocols, label, prediction, rank, score, images = (arrays[name] for name in _FIELDS)
        return cls(str(cell), str(seen), tuple(protocols.tolist()), label, prediction, rank, score, str(images))


_FIELDS = ("cell", "seen", "protocols", "label", "prediction", "rank", "score", "images")


@dataclass(frozen=True)
class RobustnessOutcomes(PerImage):
    """How a classifier did on a shifted set."""

    kind: Kind
    cells: tuple[ConditionOutcomes, ...]
    """In the set's order; a cell that was seen in several ways comes several times."""
    gap: tuple[str, ...] = ()
    """Two cells whose accuracies are subtracted."""
    extra: tuple[str, ...] = ()
    """Corruptions that are reported apart."""
    alexnet: bool = False
    """Whether errors are divided by AlexNet's too."""

    @classmethod
    def of(cls, recipe: RobustnessDatasetRecipe, cells: Iterable[ConditionOutcomes]) -> "RobustnessOutcomes":
        """All cells of a set.

        Raises:
            ValueError: if they do not go together.
        """
        kind: Kind = "accuracy" if recipe.kind == "classes" else recipe.kind
        return cls(kind, tuple(cells), tuple(recipe.gap), tuple(recipe.extra), recipe.alexnet)

    def __post_init__(self) -> None:
        """Check that the cells go together.

        Raises:
            ValueError: if corruptions or occlusions are not of the same images, or a detection lacks a cell or scores.
        """
        if self.kind in ("corruptions", "occlusion") and len({cell.images for cell in self.cells}) != 1:
            raise ValueError("corruptions and occlusions are of the same images, and these cells have others")
        if self.kind == "detection":
            if {cell.cell for cell in self.cells} != {KNOWN, UNKNOWN}:
                raise ValueError(f"a detection has the cells {KNOWN} and {UNKNOWN}")
            if any(len(cell.score) != len(cell.label) for cell in self.cells):
                raise ValueError("a detection needs the score of every image")

    @property
    def images(self) -> str:
        """sha256 over the cells' names and those of their images: outcomes are paired only if it is equal."""
        return names_fingerprint(f"{one.cell} {one.seen} {one.images}" for one in self.cells)

    def measurements(self) -> list[Measurement]:
        """All numbers of the set, the one that tables print first, each with its 95 % interval over images."""
        if self.kind == "detection":
            return [one for name, detection in self._detections().items() for one in detection.measurements(name)]
        return measure(self._quantities())

    def printed(self) -> list[str]:
        """The metrics that tables print: of several protocols and ways of seeing the first, and ReaL's labels.

        Of corruptions the means, of a detection AUPR, of occlusions the means over shares and over tiles.
        """
        if self.kind == "corruptions":
            return [q.metric for q in self._errors() if q.metric == "mCE" or q.metric.startswith("mean error")][:2]
        if self.kind == "detection":
            return [f"{NAMES[0]}, {next(iter(self._detections()))}"]
        if self.kind == "occlusion":
            return [q.metric for q in self._occlusions()]
        first = self.cells[0].seen
        return [
            _told("top-1", one.cell, protocol, one.seen)
            for one in self.cells
            for place, protocol in enumerate(one.protocols)
            if one.seen == first and (place == 0 or protocol == REAL)
        ] + [q.metric for q in self._gaps()][:1]

    @classmethod
    def compare(cls, first: Sequence[Self], second: Sequence[Self], metric: str) -> Paired | Resampled:
        """Compare accuracies and single errors by McNemar's test, means, gaps and detections by a bootstrap over images."""
        if len({one.images for one in (*first, *second)}) != 1:
            raise ValueError("the methods were measured on other images")
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
        """What is kept of it in a file."""
        kept: dict[str, NDArray[Any]] = {
            "kind": np.array(self.kind), "gap": np.array(self.gap, str), "extra": np.array(self.extra, str),
            "alexnet": np.array(self.alexnet), "cells": np.array(len(self.cells)),
        }  # fmt: skip
        for place, cell in enumerate(self.cells):
            kept |= {f"{place}.{name}": values for name, values in cell.arrays().items()}
        return kept

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "RobustnessOutcomes":
        """The reverse of :meth:`arrays`.

        Raises:
            KeyError: if they are not those of a shifted set.
        """
        kind = str(arrays["kind"])
        if kind not in get_args(Kind):
            raise KeyError(kind)
        cells = tuple(
            ConditionOutcomes.from_arrays({name: arrays[f"{place}.{name}"] for name in _FIELDS})
            for place in range(int(arrays["cells"]))
        )
        between, extra = (tuple(arrays[name].tolist()) for name in ("gap", "extra"))
        return cls(kind, cells, between, extra, bool(arrays["alexnet"]))  # type: ignore[arg-type]

    def _quantities(self) -> list[Quantity]:
        if self.kind == "corruptions":
            return self._errors()
        return [*self._occlusions(), *self._accuracies(), *self._gaps()]

    def _occlusions(self) -> Iterator[Quantity]:
        """Means over the cells in which patches are dropped, and over those in which tiles are shuffled."""
        if self.kind != "occlusion":
            return
        for kind, told in (("drop", "patches dropped"), ("shuffle", "tiles shuffled")):
            chosen = [one for one in self.cells if one.cell.startswith(kind) and one.seen == self.cells[0].seen]
            if chosen:
                share_right = np.mean([one.right() for one in chosen], axis=0)
                yield mean(f"mean top-1, {told}", share_right)

    def _accuracies(self) -> Iterator[Quantity]:
        for one in self.cells:
            for place, protocol in enumerate(one.protocols):
                yield share(_told("top-1", one.cell, protocol, one.seen), one.right(place))

    def _gaps(self) -> Iterator[Quantity]:
        if self.gap:
            first, second = ([one for one in self.cells if one.cell == name] for name in self.gap)
            for one, other in zip(first, second, strict=True):
                for place, protocol in enumerate(one.protocols):
                    named = _told("gap", f"{one.cell} - {other.cell}", protocol, one.seen)
                    yield gap(named, one.right(place), other.right(place))

    def _errors(self) -> list[Quantity]:
        errors: dict[str, dict[int, NDArray[np.bool_]]] = {}
        for one in self.cells:
            corruption, severity = one.cell.rsplit("/", 1)
            errors.setdefault(corruption, {})[int(severity)] = ~one.right()
        return corruption_quantities(errors, self.extra, self.alexnet)

    def _detections(self) -> dict[str, Detection]:
        """By protocol and way of seeing; only known images that count."""
        made = {}
        for seen in dict.fromkeys(one.seen for one in self.cells):
            known, unknown = (
                next(one for one in self.cells if (one.cell, one.seen) == (cell, seen)) for cell in (KNOWN, UNKNOWN)
            )
            scores = -known.score[known.rank[0] >= 0].astype(np.float64), -unknown.score.astype(np.float64)
            made[_told(known.protocols[0], seen)] = Detection(*scores)
        return made


def _told(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _small(values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """int16 where that holds them."""
    whole = np.ascontiguousarray(values).astype(np.int64)
    return whole.astype(np.int16 if whole.size == 0 or np.abs(whole).max() < 2**15 else np.int32)
