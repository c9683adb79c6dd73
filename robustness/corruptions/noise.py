"""Noise: in the sensor, in counting light, in transmission."""

import numpy as np
from skimage.util import random_noise

from robustness.corruptions.pixels import Pixels


def gaussian_noise(image: Pixels, draw: np.random.Generator, scale: float) -> Pixels:
    """Add Gaussian noise of standard deviation ``scale`` in every channel."""
    return image + draw.normal(scale=scale, size=image.shape)


def shot_noise(image: Pixels, draw: np.random.Generator, photons: float) -> Pixels:
    """Poisson noise of a sensor that white reaches with ``photons`` photons."""
    return draw.poisson(image * photons) / photons


def impulse_noise(image: Pixels, draw: np.random.Generator, share: float) -> Pixels:
    """Set a ``share`` of all values to 0 or 1."""
    return np.asarray(random_noise(image, mode="s&p", rng=draw, amount=share))  # type: ignore[no-untyped-call]


def speckle_noise(image: Pixels, draw: np.random.Generator, scale: float) -> Pixels:
    """Gaussian noise in proportion to the value."""
    return image + image * draw.normal(scale=scale, size=image.shape)
