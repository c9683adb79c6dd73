"""What several corruptions share. Inside them an image is float64 (H, W, 3) in [0, 1].

Pixels shall be the same on every machine, but the last bit of a floating-point number is not: vectorised exponentials,
matrix products and fused multiplications differ between processors. So everything is computed in float64, random
numbers aside nothing is compared with a threshold that it could equal, and :func:`to_bytes` keeps whole grey levels whole.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.float64]

HAIR = 1e-6
"""Grey levels: far above the errors of rounding, far below what could be seen."""


def to_bytes(image: Pixels) -> NDArray[np.uint8]:
    """Return 8-bit grey levels of ``image``, in [0, 1] or clipped to it: truncated, as the makers of ImageNet-C do, except that
    what errors of rounding left a hair below a whole level is that level."""
    return np.floor(np.clip(image, 0, 1) * 255 + HAIR).astype(np.uint8)


def from_bytes(image: NDArray[np.uint8]) -> Pixels:
    """Return the image whose :func:`to_bytes` these are, exactly."""
    return image / 255.0


def gaussian(image: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of rows and columns, edges repeated: what skimage.filters.gaussian computes."""
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, *[0] * (image.ndim - 2)), mode="nearest"))


def smear(image: Pixels, radius: float, sigma: float, degrees: float) -> Pixels:
    """Blur along a line: what ImageMagick's MotionBlurImage computes, edges repeated.

    Every pixel becomes the mean of itself and ``2 * radius`` pixels on one side of it in the direction ``degrees``,
    weighted by half a Gaussian. ``image`` (H, W) or (H, W, C).
    """
    steps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    down = np.ceil(steps * np.sin(np.deg2rad(degrees)) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(np.deg2rad(degrees)) - 0.5).astype(int)
    margin = len(steps)
    padded = np.pad(image, [(margin, margin), (margin, margin), *[(0, 0)] * (image.ndim - 2)], mode="edge")
    height, width = image.shape[:2]
    blurred = np.zeros_like(image)
    for weight, dy, dx in zip(weights, down, right, strict=True):
        blurred += weight * padded[margin + dy :, margin + dx :][:height, :width]
    return blurred


def zoomed(image: Pixels, factor: float) -> Pixels:
    """Return the middle of ``image`` enlarged by ``factor`` to the size of the whole, bilinearly: (H, W) or (H, W, C)."""
    for _ in range(2):  # rows, and then columns as rows: whole rows are quick to copy
        low, part = _zoom_positions(image.shape[0], factor)
        part = part.reshape(-1, *[1] * (image.ndim - 1))
        image = image[low] * (1 - part) + image[low + 1] * part
        image = np.ascontiguousarray(image.swapaxes(0, 1))
    return image


@lru_cache(maxsize=256)
def _zoom_positions(length: int, factor: float) -> tuple[NDArray[np.int64], Pixels]:
    """Return where the enlarged pixels lie: (n,) the pixel before, and (n,) how far on the way to the next one.

    As scipy.ndimage.zoom does to the middle part, its first and last pixel staying where they are, cut to ``length``.
    """
    part = int(np.ceil(length / factor))
    enlarged = round(part * factor)
    cut = (enlarged - length) // 2
    places = (length - part) // 2 + (np.arange(enlarged) * (part - 1) / (enlarged - 1))[cut : cut + length]
    low = np.minimum(places.astype(np.int64), length - 2)
    return low, places - low
