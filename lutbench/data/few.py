"""Select a few images of a split, for smoke runs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbench.data.walking import evenly_spaced

OF_CLASS = 4
"""Images per class, if classes have that many: enough to hold one out, and for every query to have a match."""


def few_of(images: Any, few: int) -> NDArray[np.int64]:
    """Return the ascending indices (n,) of about ``few`` images of a split: four of each of a few classes, evenly spaced.

    If fewer than two classes have four images, use the largest number per class that two classes have. Without labels, the images are
    evenly spaced in the split.
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
