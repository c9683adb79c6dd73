"""Snow, frost and fog."""

import numpy as np

from robustness.corruptions.frost import frost_crop
from robustness.corruptions.pixels import Pixels, from_bytes, smear, to_bytes, zoomed

LUMA = np.array([0.299, 0.587, 0.114])
"""Shares of red, green and blue in grey (ITU-R BT.601)."""


def snow(
    image: Pixels,
    draw: np.random.Generator,
    mean: float,
    spread: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Pixels:
    """Flakes that fall within 45 degrees of the vertical, on an image whitened to ``kept`` of itself.

    A flake is what exceeds ``threshold`` in Gaussian noise, enlarged by ``zoom`` and smeared; all flakes are laid on
    twice, the second time turned by 180 degrees.
    """
    flakes = zoomed(draw.normal(mean, spread, image.shape[:2]), zoom)
    flakes[flakes < threshold] = 0
    flakes = smear(from_bytes(to_bytes(flakes)), radius, sigma, draw.uniform(-135, -45))
    flakes = from_bytes(to_bytes(flakes))
    grey: Pixels = image @ LUMA
    white = np.maximum(image, (grey * 1.5 + 0.5)[..., None])
    return kept * image + (1 - kept) * white + (flakes + np.rot90(flakes, 2))[..., None]


def frost(image: Pixels, draw: np.random.Generator, kept: float, ice: float) -> Pixels:
    """Add ``ice`` times a sheet of ice to ``kept`` of the image.

    The published sets take the ice from five photographs of unknown origin; ours is drawn (:mod:`.frost`).
    """
    return kept * image + ice * frost_crop((image.shape[0], image.shape[1]), draw)


def fog(image: Pixels, draw: np.random.Generator, thickness: float, decay: float) -> Pixels:
    """Add ``thickness`` times a cloud (:func:`plasma`), and scale so that the brightest stays as bright."""
    height, width = image.shape[:2]
    brightest = float(image.max())
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), decay, draw)
    return (image + thickness * cloud[:height, :width, None]) * brightest / (brightest + thickness)


def plasma(side: int, decay: float, draw: np.random.Generator) -> Pixels:
    """Return a cloud (side, side) in [0, 1] by the diamond-square method, seamless; ``side`` is a power of two.

    From coarse to fine, every new point is the mean of the four around it plus noise. When the distance is halved, the
    noise's amplitude is divided by the square of ``decay``.
    """
    cloud = np.zeros((side, side))
    step, amplitude = side, 100.0**2
    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        centres = _shaken((pairs + np.roll(pairs, -1, 1)) / 4, amplitude, draw)
        on_rows = (corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0)) / 4
        on_columns = (corners + np.roll(corners, -1, 0) + centres + np.roll(centres, 1, 1)) / 4
        cloud[half::step, half::step] = centres
        cloud[::step, half::step] = _shaken(on_rows, amplitude, draw)
        cloud[half::step, ::step] = _shaken(on_columns, amplitude, draw)
        step, amplitude = half, amplitude / decay**2
    cloud -= cloud.min()
    return cloud / float(cloud.max())


def _shaken(points: Pixels, amplitude: float, draw: np.random.Generator) -> Pixels:
    return points + draw.uniform(-amplitude, amplitude, points.shape)
