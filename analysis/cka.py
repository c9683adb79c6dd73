"""Linear CKA, the similarity of the features of two blocks of one or two encoders, from Gram matrices of minibatches.

Kornblith et al. 2019; minibatch version of Nguyen, Raghu and Kornblith 2021, section 2. CKA needs only Gram matrices, which do not depend on
the width of the features, so encoders can be compared from stored matrices, without their weights.
"""

import numpy as np
from numpy.typing import NDArray

from lutbench.errors import UserError

MINIBATCH = 64
"""Images of a minibatch, at least (our choice); fewer only if there are no more."""

FEWEST = 4
"""Images that the unbiased estimator needs (Song et al. 2012)."""


def grams(features: NDArray[np.float32], minibatch: int = MINIBATCH) -> NDArray[np.float32]:
    """Return the Gram matrices of ``features`` (n, L + 1, D) of every block: (L + 1, M, b (b - 1) / 2), upper triangles without diagonals.

    M is n // ``minibatch``, at least 1, and b is n // M. Image i belongs to minibatch i mod M, since neighbours in a dataset are often
    of one class; the last n - b M images are left out. Features are centred, and a block's matrices divided by their largest value:
    CKA is the same, and float32 is enough.

    Raises:
        UserError: for fewer than 4 images.
    """
    images, blocks, _ = features.shape
    check_enough_for_cka(images)
    count = max(1, images // minibatch)
    size = images // count
    above = np.triu_indices(size, 1)
    made = np.empty((blocks, count, len(above[0])), np.float32)
    for block in range(blocks):
        centred = features[: count * size, block].astype(np.float64)
        centred -= centred.mean(0)
        rows = centred.reshape(size, count, -1).swapaxes(0, 1)
        products = (rows @ rows.swapaxes(1, 2))[:, above[0], above[1]]
        made[block] = products / max(np.abs(products).max(), np.finfo(np.float64).tiny)
    return made


def check_enough_for_cka(images: int) -> None:
    """Check that there are images enough. Raises UserError for fewer than 4."""
    if images < FEWEST:
        raise UserError(
            f"CKA between blocks needs at least {FEWEST} images, found {images}. Use more images (settings images, split or data), or remove "
            '"depth" from measures.'
        )


def cka(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the linear CKA (L1 + 1, L2 + 1) of all blocks of two encoders, from what :func:`grams` gave of each on the same images.

    1 if features are equal but for rotation and scale, about 0 if they have nothing in common; the estimator is unbiased, so that it
    may be a little below 0. NaN for a block whose features are the same for all images.

    Raises:
        ValueError: if the minibatches are not of the same number and size.
    """
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"expected Gram matrices of the same images, found shapes {first.shape} and {second.shape}")
    own = [np.array([_hsic(block[None], block[None])[0, 0] for block in grams_]) for grams_ in (first, second)]
    with np.errstate(invalid="ignore"):
        scale = np.sqrt(np.where(own[0] > 0, own[0], np.nan))[:, None] * np.sqrt(np.where(own[1] > 0, own[1], np.nan))
        return np.asarray(_hsic(first, second) / scale)


def _hsic(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the unbiased HSIC_1 (Song et al. 2012, equation 5) of each of ``first`` with each of ``second``, mean over minibatches.

    All its terms are bilinear in the matrices, whose diagonals count as 0, so that the mean is one product of matrices.
    """
    _, count, pairs = first.shape
    size = round((1 + (1 + 8 * pairs) ** 0.5) / 2)
    ends = np.zeros((pairs, size))
    ends[np.arange(pairs), np.triu_indices(size, 1)] = 1
    one, other = first.astype(np.float64), second.astype(np.float64)
    trace = 2 * one.reshape(len(one), -1) @ other.reshape(len(other), -1).T
    rows, other_rows = one @ ends, other @ ends
    sums = rows.sum(2) @ other_rows.sum(2).T
    crossed = rows.reshape(len(rows), -1) @ other_rows.reshape(len(other_rows), -1).T
    total = trace + sums / ((size - 1) * (size - 2)) - 2 / (size - 2) * crossed
    return np.asarray(total / (count * size * (size - 3)))
