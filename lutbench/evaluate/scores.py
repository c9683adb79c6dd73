"""Probabilities of a classifier for an image: that of the label, and the most likely classes.

Stored as float32, precise enough even near 1, where the confidences of a trained classifier lie. 1.7 MB for 50,000 images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lutbench.arrays import Layout, small_integers

TOP = 5
"""The classes that are kept of an image: as many as top-5 counts."""

SCORES: Layout = {"log_probability": (("f4",), 1), "top": (("i2", "i4"), 2), "top_probability": (("f4",), 2)}
"""The arrays that are kept of scores in a file; records of before there were any have none of them."""

ROUNDING = 1e-4
"""By how much probabilities may miss their order and their sum: sums over thousands of classes in float32."""


@dataclass(frozen=True)
class Scores:
    """The probabilities that a classifier gave on every image of a set, in the set's order."""

    top: NDArray[np.integer[Any]]
    """(n, k) The most likely classes, the first the prediction: five, or as many as there are. -1 where no neighbour votes for another."""
    top_probability: NDArray[np.float32]
    """(n, k) Their probabilities: the softmax of the classifier's outputs, or of nearest neighbours the shares of their votes."""
    log_probability: NDArray[np.float32] | None = None
    """(n,) Natural logarithm of the label's probability. None of nearest neighbours: that of a class without votes has none."""

    @classmethod
    def of(cls, ranked: NDArray[np.floating[Any]]) -> Self:
        """Return them from what :func:`lutbench.evaluate.inference.rank_of_label` gave, (n, 3 + 2 k)."""
        top, likely = np.split(ranked[:, 3:], 2, axis=1)
        log_probability = None if np.isnan(ranked[:, 2]).any() else ranked[:, 2].astype(np.float32)
        return cls(small_integers(top.astype(np.int64)), likely.astype(np.float32), log_probability)

    @property
    def confidence(self) -> NDArray[np.float32]:
        """(n,) The probability of the prediction."""
        return self.top_probability[:, 0]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept of them in a file."""
        own = {} if self.log_probability is None else {"log_probability": self.log_probability}
        return {**own, "top": self.top, "top_probability": self.top_probability}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        label: NDArray[np.integer[Any]],
        prediction: NDArray[np.integer[Any]],
        rank: NDArray[np.integer[Any]],
    ) -> Self | None:
        """Return the scores that :meth:`arrays` gave, None if there are none; the others are of the same images, (n,).

        Raises:
            KeyError: if one of the arrays is missing.
            ValueError: if a value is none that can occur, or they are not of this label, prediction and rank.
        """
        if not arrays.keys() & SCORES.keys():
            return None
        top, likely, own = arrays["top"], arrays["top_probability"], arrays.get("log_probability")
        n, k = top.shape
        if likely.shape != (n, k) or n != len(label) or not 1 <= k <= TOP or (own is not None and own.shape != (n,)):
            raise ValueError(
                f"{top.shape} most likely classes with {likely.shape} probabilities of {len(label)} images"
            )
        whole = (likely >= 0).all() and (likely.sum(1) <= 1 + ROUNDING).all()
        ordered = (np.diff(likely, axis=1) <= ROUNDING).all() and (top[:, 0] == prediction).all()
        if not (whole and ordered) or (own is not None and not ((own <= 0) & np.isfinite(own)).all()):
            raise ValueError(
                "a probability that is out of range or order, or a most likely class that is not the prediction"
            )
        among = np.flatnonzero(rank < k)
        found = top[among, rank[among]]
        if ((found != label[among]) & (found != -1)).any():
            raise ValueError("a label that is not among the most likely classes at its rank")
        return cls(top, likely, own)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return a column for each number of an image, by name, as tables of images have them."""
        own = {} if self.log_probability is None else {"log_probability": self.log_probability}
        each = enumerate(zip(self.top.T, self.top_probability.T, strict=True), 1)
        ranked = {name: c for k, (of, p) in each for name, c in ((f"top{k}", of), (f"top{k}_probability", p))}
        return {**own, "confidence": self.confidence, **ranked}
