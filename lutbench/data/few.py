"""A few images of a split: what a smoke run reads of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbench.data.walking import evenly_spaced

OF_CLASS = 4
"""Images of each class, where classes have so many: enough to hold one out, and for every query to have something to find."""


def few_of(images: Any, few: int) -> NDArray[np.int64]:
    """Return which images (n,), ascending, ``few`` of a split are: four of each of a few classes, evenly spaced; of one without labels any.

    Where fewer than two classes have four, as many of each as two classes have.
    """
    if images.labels is None or not len(images.classes):
        return evenly_spaced(len(images), few)
    counts = np.bincount(images.labels, minlength=len(images.classes))
    most = next((many for many in range(OF_CLASS, 0, -1) if (counts >= many).sum() >= 2), 1)
    fitting = np.flatnonzero(counts >= most)
    classes = fitting[evenly_spaced(len(fitting), max(2, few // most))]
    each = max(1, few // len(classes))
    own = (np.flatnonzero(images.labels == label) for label in classes.tolist())
    return np.sort(np.concatenate([index[evenly_spaced(len(index), each)] for index in own]))
