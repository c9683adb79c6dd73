"""Blur: out of focus, through frosted glass, by motion, by zooming."""

import numpy as np
from scipy import ndimage, signal

from robustness.corruptions.pixels import Pixels, from_bytes, gaussian, smear, to_bytes, zoomed


def defocus_blur(image: Pixels, draw: np.random.Generator, radius: float, softness: float) -> Pixels:
    """Average over a disk, whose edge is softened by a Gaussian of standard deviation ``softness``."""
    reach = max(8, int(radius))
    rows, columns = np.indices((2 * reach + 1, 2 * reach + 1)) - reach
    inside = rows**2 + columns**2 <= radius**2
    disk = inside / inside.sum()
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    weights = np.exp(-(taps**2) / (2 * softness**2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, weights / weights.sum(), axis, mode="mirror")
    padded = np.pad(image, [(reach, reach), (reach, reach), (0, 0)], mode="reflect")
    return np.asarray(signal.fftconvolve(padded, disk[..., None], mode="valid", axes=(0, 1)))


def glass_blur(image: Pixels, draw: np.random.Generator, sigma: float, reach: float, rounds: float) -> Pixels:
    """Blurred, then every pixel replaced by a random near one, ``rounds`` times over, and blurred again.

    Pixel after pixel from the last to the first, so that a pixel can travel. The paper swaps two pixels; the scripts that
    made the published sets mean to, but overwrite the one before they read it, and so do we.
    """
    near = int(reach)
    height, width = image.shape[:2]
    rows, columns = np.arange(height - near, near, -1), np.arange(width - near, near, -1)
    places = (rows[:, None] * width + columns).ravel()
    shown = list(range(height * width))
    for _ in range(int(rounds)):
        down, right = draw.integers(-near, near, (2, len(places)))
        others = places + down * width + right
        for place, other in zip(places.tolist(), others.tolist(), strict=True):
            shown[place] = shown[other]
    blurred = to_bytes(gaussian(image, sigma)).reshape(-1, 3)
    return gaussian(from_bytes(blurred[shown]).reshape(image.shape), sigma)


def motion_blur(image: Pixels, draw: np.random.Generator, radius: float, sigma: float) -> Pixels:
    """Along a line within 45 degrees of the horizontal."""
    return smear(image, radius, sigma, draw.uniform(-45, 45))


def zoom_blur(image: Pixels, draw: np.random.Generator, end: float, step: float) -> Pixels:
    """Average the image and its middle, ever more enlarged."""
    factors = np.arange(1, end, step)
    total = image.copy()
    for factor in factors:
        total += zoomed(image, factor)
    return total / (len(factors) + 1)


def gaussian_blur(image: Pixels, draw: np.random.Generator, sigma: float) -> Pixels:
    """Blur by a Gaussian of standard deviation ``sigma`` pixels."""
    return gaussian(image, sigma)
