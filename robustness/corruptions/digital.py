"""Contrast, saturation, warping, and what storing an image does to it."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv

from robustness.corruptions.pixels import Pixels, from_bytes, to_bytes


def brightness(image: Pixels, draw: np.random.Generator, more: float) -> Pixels:
    """HSV's value raised by ``more``: so colours keep their proportions, and black becomes grey."""
    value: Pixels = image.max(-1, keepdims=True)
    black = value == 0
    colour = np.where(black, 1, image / np.where(black, 1, value))
    return colour * np.minimum(value + more, 1)


def saturate(image: Pixels, draw: np.random.Generator, factor: float, more: float) -> Pixels:
    """HSV's saturation times ``factor`` plus ``more``."""
    hsv = rgb2hsv(image)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + more, 0, 1)
    return np.asarray(hsv2rgb(hsv))


def contrast(image: Pixels, draw: np.random.Generator, factor: float) -> Pixels:
    """Distances from each channel's mean times ``factor``."""
    mean: Pixels = image.mean((0, 1))
    return (image - mean) * factor + mean


def elastic_transform(image: Pixels, draw: np.random.Generator, height: float, sigma: float, shift: float) -> Pixels:
    """Move three points by up to ``shift`` pixels in an affine map, then displace by a smooth field.

    The field is uniform noise in [-1, 1], blurred with ``sigma`` pixels and multiplied by ``height`` pixels.
    """
    shape = np.array(image.shape[:2])
    centre, arm = shape // 2, shape.min() // 3
    points = centre + arm * np.array([[1, 1], [-1, 1], [-1, -1]])  # rows and columns
    moved = points + draw.uniform(-shift, shift, points.shape)
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # from where a moved point came
    places = np.indices(image.shape[:2]).astype(np.float64)
    image = _sampled(image, np.tensordot(back[:2].T, places, 1) + back[2][:, None, None], "mirror")
    if not height:
        return image
    field = [_blurred_noise(draw, image.shape[:2], sigma) * height for _ in range(2)]
    return _sampled(image, places + np.stack(field), "reflect")


def pixelate(image: Pixels, draw: np.random.Generator, share: float) -> Pixels:
    """Reduced to a ``share`` of its side, and enlarged again."""
    whole = Image.fromarray(to_bytes(image))
    small = whole.resize((int(whole.width * share), int(whole.height * share)), Image.Resampling.BOX)
    return from_bytes(np.asarray(small.resize(whole.size, Image.Resampling.BOX)))


def jpeg_compression(image: Pixels, draw: np.random.Generator, quality: float) -> Pixels:
    """Stored as JPEG of that quality, and read again."""
    stored = BytesIO()
    Image.fromarray(to_bytes(image)).save(stored, "JPEG", quality=int(quality))
    return from_bytes(np.asarray(Image.open(stored)))


def _sampled(image: Pixels, places: Pixels, mode: str) -> Pixels:
    """Return ``image`` at rows and columns ``places`` (2, H, W), bilinearly."""
    channels = [ndimage.map_coordinates(image[..., k], places, order=1, mode=mode) for k in range(image.shape[2])]
    return np.stack(channels, -1)


def _blurred_noise(draw: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Pixels:
    """Uniform noise in [-1, 1], blurred."""
    noise = draw.uniform(-1, 1, shape)
    return np.asarray(_blur_matrix(shape[0], sigma) @ noise @ _blur_matrix(shape[1], sigma).T)


@lru_cache(maxsize=16)
def _blur_matrix(length: int, sigma: float) -> Pixels:
    """Return the (n, n) matrix that blurs n values: a blur far wider than the image costs no more than a narrow one."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(length), sigma, axis=0, mode="reflect", truncate=3))
