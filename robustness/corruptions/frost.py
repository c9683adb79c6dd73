"""Sheets of ice on a window, drawn from random numbers.

The published sets crop the ice from five photographs found on the web, whose authors and terms are unknown, so they are
not shipped here. The sheets that take their place have their colours, contrasts and grain: needles, long and short, in
patches of one direction each, on ice of slowly varying thickness. They are no photographs, and change images more: at
severity 3 and 224 pixels by 81.8 grey levels on average, where the photographs do by 67.7 (one comparison; they are not here to repeat it). So what is measured on frost is this
suite's own, and tables say so (:data:`lutbench.recipes.robustness.DRAWN_FROST`).
"""

from functools import lru_cache

import numpy as np
from scipy import ndimage

from lutbench.train.randomness import RngStream, generator
from robustness.corruptions.pixels import Pixels, smear

SHEETS = (
    ((0.30, 0.58, 0.65), 0.06),
    ((0.79, 0.81, 0.84), 0.08),
    ((0.79, 0.81, 0.84), 0.08),
    ((0.54, 0.60, 0.65), 0.10),
    ((0.44, 0.48, 0.53), 0.15),
)
"""Mean red, green and blue, and standard deviation of the grey levels, as measured on the five photographs; the second
and the third are the same picture."""

LARGER = 2
"""Side of a sheet over that of the image: about as the photographs are, whose shorter sides are 315 to 600 pixels."""

NEEDLES = (1 / 9, 1 / 22)
"""Lengths of needles, over the side of the image."""

DIRECTIONS = 6

GERM = 3
"""The power that Gaussian noise is raised to, so that few points stand out, from which needles grow."""


def frost_crop(shape: tuple[int, int], draw: np.random.Generator) -> Pixels:
    """Return a random part (H, W, 3) of one of the sheets, in [0, 1]; ``shape`` is (H, W)."""
    sheet = _sheet(int(draw.integers(len(SHEETS))), max(shape))
    rows, columns = (draw.integers(len(sheet)) + np.arange(side) for side in shape)
    return sheet.take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")


@lru_cache(maxsize=2 * len(SHEETS))
def _sheet(number: int, side: int) -> Pixels:
    """Return a sheet for images of that side, seamless and always the same: (S, S, 3)."""
    draw = generator(RngStream.CORRUPTION, number)
    size = LARGER * side
    colour, spread = SHEETS[number]
    ice = 0.7 * _noise(size, side / 6, draw)
    for length in NEEDLES:
        ice += _needles(size, side * length, draw)
    return np.clip(np.array(colour) + spread * _scaled(ice)[..., None], 0, 1)


def _needles(size: int, length: float, draw: np.random.Generator) -> Pixels:
    """Patches of needles (size, size); mean 0 and standard deviation 1."""
    turn = draw.uniform(0, 360)
    grown, thickness = np.zeros((size, size)), np.zeros((size, size))
    for k in range(DIRECTIONS):
        needle = np.zeros((size, size))
        needle[size // 2, size // 2] = 1
        needle = smear(needle, max(1, round(length)), length / 1.5, turn + 360 * k / DIRECTIONS)
        germs = np.fft.rfft2(_noise(size, 0.6, draw) ** GERM)
        layer = _scaled(np.fft.irfft2(germs * np.fft.rfft2(needle), (size, size)))
        thick = np.exp(3 * _noise(size, length / 1.5, draw))  # the thickest covers the others, with a soft edge
        grown += thick * layer
        thickness += thick
    return _scaled(grown / thickness)


def _noise(size: int, sigma: float, draw: np.random.Generator) -> Pixels:
    """Gaussian noise (size, size), blurred across opposite edges; mean 0 and standard deviation 1."""
    spectrum = ndimage.fourier_gaussian(np.fft.rfft2(draw.normal(size=(size, size))), sigma, size)
    return _scaled(np.fft.irfft2(spectrum, (size, size)))


def _scaled(field: Pixels) -> Pixels:
    """Return the values scaled to mean 0 and standard deviation 1."""
    scaled: Pixels = (field - field.mean()) / field.std()
    return scaled
