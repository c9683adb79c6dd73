"""Drops of water or splashes of mud on the lens."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from robustness.corruptions.pixels import HAIR, Pixels, gaussian, to_bytes

WATER = np.array([175, 238, 238]) / 255
"""The colour of water: pale turquoise."""
MUD = np.array([63, 42, 20]) / 255
"""The colour of mud: brown."""


def spatter(
    image: Pixels,
    draw: np.random.Generator,
    mean: float,
    spread: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: float,
) -> Pixels:
    """Drops of water, lighter towards one side, or splashes of mud: where blurred Gaussian noise exceeds ``threshold``."""
    liquid = gaussian(draw.normal(mean, spread, image.shape[:2]), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover: Pixels = gaussian((liquid > 0).astype(np.float64), strength)[..., None]
        cover[cover < 0.8] = 0
        return image * (1 - cover) + cover * MUD
    thickness = to_bytes(liquid)
    drops = thickness * _relief(thickness)
    if not drops.any():
        return image
    return image + (strength / float(drops.max())) * drops[..., None] * WATER


def _relief(drops: NDArray[np.uint8]) -> Pixels:
    """Return how drops are lit, (H, W) in grey levels, from the distance to the nearest edge, at most 20 pixels."""
    edges = edges_of(drops)
    distance = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(drops.shape, 20.0)
    smooth = ndimage.uniform_filter(np.minimum(distance, 20), 3, mode="mirror")
    levels = _equalised(np.floor(smooth + HAIR).astype(np.int64))
    slope = ndimage.correlate(levels, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    lit = ndimage.uniform_filter(np.clip(slope, 0, 255).astype(np.float64), 3, mode="mirror")
    return np.asarray(np.floor(lit + 0.5))


def edges_of(levels: NDArray[np.uint8], low: int = 50, high: int = 150) -> NDArray[np.bool_]:
    """Canny's edges (H, W) without blur, in integers and of two equal neighbours the first: as OpenCV finds them.

    scikit-image's keeps both neighbours, so that an edge is two pixels wide and drops are darker.
    """
    right, down = (ndimage.sobel(levels.astype(np.int64), axis, mode="nearest") for axis in (1, 0))
    slope = np.abs(right) + np.abs(down)
    padded = np.pad(slope, 1)

    def crests(dy: int, dx: int) -> NDArray[np.bool_]:
        height, width = slope.shape
        before, after = (padded[1 + k * dy :, 1 + k * dx :][:height, :width] for k in (-1, 1))
        return np.asarray((slope > before) & ((slope > after) if dy and dx else (slope >= after)), np.bool_)

    crest = np.select(
        [
            np.abs(down) < np.tan(np.pi / 8) * np.abs(right),
            np.abs(right) < np.tan(np.pi / 8) * np.abs(down),
            right * down < 0,
        ],
        [crests(0, 1), crests(1, 0), crests(1, -1)],
        crests(1, 1),
    )
    parts, _ = ndimage.label(crest & (slope > low), np.ones((3, 3)))
    return np.asarray(np.isin(parts, parts[crest & (slope > high)]), np.bool_)


def _equalised(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Spread over 0 to 255 so that all levels are about as frequent; 0 is the lowest that occurs."""
    counts = np.bincount(levels.ravel())
    lowest = int(np.flatnonzero(counts)[0])
    others = levels.size - counts[lowest]
    if not others:
        return levels
    below = np.cumsum(counts) - counts[lowest]
    spread: NDArray[np.int64] = np.rint(below * 255 / others).astype(np.int64)[levels]
    return spread
