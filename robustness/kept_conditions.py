"""Stored outcomes of one condition of a robustness dataset: a part of it, a corruption at a severity, a share of dropped patches.

Of every image are kept its label and, under every protocol (which outputs compete, which answers are right), the prediction and
the index of the first right answer: 4 bytes a protocol, before compression 28 MB for ImageNet-C with its extras. Names of images
are kept once for all conditions of the same ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutbench.arrays import Layout, small_integers
from lutbench.evaluate.image_names import ARRAY, KEY, packed_names, unpacked_names
from lutbench.evaluate.outcomes import fingerprint_text, names_fingerprint
from lutbench.files import check_plain


@dataclass(frozen=True)
class ConditionOutcomes:
    """How a classifier did on every image of one condition, preprocessed in one way, in the condition's order."""

    condition: str
    """``fog/3``, ``matched-frequency``, ``drop 3/10``; empty for a set without parts."""
    preprocessing: str
    """``bicubic`` or ``bilinear`` where images were resized, else empty."""
    protocols: tuple[str, ...]
    """``200 classes``, ``1000 classes``, ``ReaL``; the first is what tables print."""
    label: NDArray[np.integer[Any]]
    """(n,) Index of the image's folder among the condition's."""
    prediction: NDArray[np.integer[Any]]
    """(p, n) The class with the highest score among those that compete, by its index among all."""
    rank: NDArray[np.integer[Any]]
    """(p, n) Rank, among those that compete, of the first right answer: 0 where it is the prediction, their number
    where none is right, -1 for an image that has no answer and is not counted."""
    score: NDArray[np.float32]
    """(n,) Highest softmax among the first protocol's classes; (0,) of corruptions and occlusions, of which it would double the
    file, and of records of before it was kept of all others."""
    images: str
    """sha256 over the images' names: outcomes are paired only if it is equal."""
    names: tuple[str, ...] = ()
    """The images' names; empty in records of before they were kept."""

    @classmethod
    def of(
        cls,
        condition: str,
        preprocessing: str,
        protocols: Sequence[str],
        label: ArrayLike,
        answers: ArrayLike,
        names: Iterable[str],
        scored: bool = False,
    ) -> "ConditionOutcomes":
        """Return the outcomes from ``answers`` (n, p, 3), which :class:`robustness.protocols.Asked` gave, and the images' names.

        Raises:
            ValueError: if lengths differ, or a classifier's outputs were not finite.
        """
        listed, values, labels = list(names), np.asarray(answers), np.asarray(label, np.int64)
        expected = (len(listed), len(protocols), 3)
        if values.shape != expected or labels.shape != (len(listed),):
            raise ValueError(
                f"expected answers of shape {expected} and one label per image, found {values.shape} and {labels.shape}"
            )
        if (values[..., 0] < 0).any():
            raise ValueError("a prediction is negative: the classifier's outputs were not finite")
        prediction, rank = (small_integers(values[..., k].T.astype(np.int64, order="C")) for k in (0, 1))
        score = np.ascontiguousarray(values[: len(listed) if scored else 0, 0, 2], np.float32)
        about, images = (condition, preprocessing, tuple(protocols)), names_fingerprint(listed)
        return cls(*about, small_integers(labels), prediction, rank, score, images, tuple(listed))

    def right(self, protocol: int = 0) -> NDArray[np.bool_]:
        """Return whether the prediction is right, of the images that count under a protocol, (m,)."""
        rank = self.rank[protocol]
        return np.asarray(rank[rank >= 0] == 0)


_KEYS = {
    "condition": "cell", "preprocessing": "seen",
    **{name: name for name in ("protocols", "label", "prediction", "rank", "score", "images")},
}  # fmt: skip
"""What a field is called in files, where older names stand."""

CONDITIONS: Layout = {
    **{f"#.{name}": (("U",), 0) for name in ("cell", "seen", "images")},
    "#.protocols": (("U",), 1), "#.label": (("i2", "i4"), 1), "#.prediction": (("i2", "i4"), 2), "#.rank": (("i2", "i4"), 2),
    "#.score": (("f4",), 1),
    f"#.{KEY}": ARRAY,
}  # fmt: skip
"""The arrays that are kept of conditions in a file."""


def pack(conditions: Sequence[ConditionOutcomes]) -> dict[str, NDArray[Any]]:
    """Return what is kept of conditions in a file, each under its number: ``0.cell``, ``0.label`` ..., ``1.cell`` ..."""
    arrays: dict[str, NDArray[Any]] = {}
    named: set[str] = set()
    for number, one in enumerate(conditions):
        arrays |= {f"{number}.{key}": np.array(getattr(one, name)) for name, key in _KEYS.items()}
        if one.names and one.images not in named:
            arrays |= {f"{number}.{key}": array for key, array in packed_names(one.names).items()}
            named.add(one.images)
    return arrays


def unpack(arrays: Mapping[str, NDArray[Any]], count: int) -> tuple[ConditionOutcomes, ...]:
    """Return the ``count`` conditions that :func:`pack` gave, of which names, types and dimensions are those of :data:`CONDITIONS`.

    Raises:
        KeyError: if one is missing.
        ValueError: if there are others, lengths differ, or a value is none that can occur.
    """
    if sum(1 for name in arrays if "." in name and not name.endswith(f".{KEY}")) != count * len(_KEYS):
        raise ValueError(f"arrays that are not those of {count} conditions")

    def one(number: int) -> ConditionOutcomes:
        """Return the condition whose arrays' names begin with ``number``."""
        condition, preprocessing, protocols, label, prediction, rank, score, images = (
            arrays[f"{number}.{key}"] for key in _KEYS.values()
        )
        names = tuple(protocols.tolist())
        check_plain([str(condition), str(preprocessing), *names], f"condition {number}")
        n = len(label)
        if not n or not names or {prediction.shape, rank.shape} != {(len(names), n)} or len(score) not in (0, n):
            raise ValueError(
                f"condition {number}: {n} labels, {rank.shape} ranks, {len(score)} scores, {len(names)} protocols"
            )
        if label.min() < 0 or prediction.min() < 0 or rank.min() < -1 or not ((score >= 0) & (score <= 1)).all():
            raise ValueError(f"condition {number}: a label, prediction, rank or score that is out of range")
        text, fingerprint = (str(condition), str(preprocessing)), fingerprint_text(images)
        of_images = unpacked_names(arrays, n, fingerprint, f"{number}.{KEY}")
        return ConditionOutcomes(*text, names, label, prediction, rank, score, fingerprint, of_images)

    found = list(map(one, range(count)))
    named = {condition.images: condition.names for condition in found if condition.names}
    return tuple(replace(condition, names=named.get(condition.images, ())) for condition in found)
