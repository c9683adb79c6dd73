"""Attention distance and entropy of uniform attention over a patch grid: the baseline for attention distances.

An encoder whose attention reaches far may attend to relevant distant patches, or to nothing in particular.
"""

import numpy as np
from numpy.typing import NDArray


def patch_distances(grid: int, patch_size: int) -> NDArray[np.float64]:
    """Return the distances (N, N) in pixels between the patches of a grid, from centre to centre; N = grid^2, row by row."""
    places = np.stack(np.divmod(np.arange(grid**2), grid), 1)
    squares = np.square(places[:, None] - places).sum(2)  # whole numbers, so that SciPy's cdist has the same bits
    distances: NDArray[np.float64] = patch_size * np.sqrt(squares.astype(np.float64))
    return distances


def uniform_distance(grid: int, patch_size: int) -> float:
    """Return the mean attention distance of uniform attention, in pixels: the mean over all pairs of patches."""
    return float(patch_distances(grid, patch_size).mean())


def uniform_entropy(grid: int) -> float:
    """Return the entropy of uniform attention over a grid, in nats."""
    return float(np.log(grid**2))
