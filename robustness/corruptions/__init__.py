"""The corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019): fifteen, and four extra ones for validation.

Drawn from one generator, which its caller seeds, so the same on every run and machine. Written here, with NumPy, SciPy,
scikit-image and Pillow, because no package could be used: imagecorruptions and its successors have the strengths for
224-px images only, and filter through OpenCV, whose pixels depend on the processor. Tests compare with what one of them does.

What differs from the scripts that made the published sets, and from files of theirs: frost is drawn, not photographed
(:mod:`.frost`); a drop of water is lit by exact distances, not OpenCV's approximate ones; nothing is
recompressed as JPEG. Official numbers come from the official files only.
"""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lutbench.errors import UserError
from lutbench.train.randomness import RngStream, generator
from robustness.corruption_names import CORRUPTIONS, EXTRA, NAMES, REVISION, SEVERITIES, check_names
from robustness.corruptions import blur, digital, noise, weather
from robustness.corruptions.constants import Constants, constants_for
from robustness.corruptions.pixels import Pixels, from_bytes, to_bytes
from robustness.corruptions.spatter import spatter

__all__ = [
    "CORRUPTIONS",
    "EXTRA",
    "REVISION",
    "SEVERITIES",
    "Constants",
    "check_names",
    "constants_for",
    "corrupt",
    "draw_of",
]

SMALLEST = 32
"""Side of the smallest images that strengths are published for, in pixels."""

_FUNCTIONS: MappingProxyType[str, Callable[..., Pixels]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            noise.gaussian_noise,
            noise.shot_noise,
            noise.impulse_noise,
            blur.defocus_blur,
            blur.glass_blur,
            blur.motion_blur,
            blur.zoom_blur,
            weather.snow,
            weather.frost,
            weather.fog,
            digital.brightness,
            digital.contrast,
            digital.elastic_transform,
            digital.pixelate,
            digital.jpeg_compression,
            noise.speckle_noise,
            blur.gaussian_blur,
            spatter,
            digital.saturate,
        )
    }
)


def corrupt(
    image: NDArray[np.uint8], name: str, severity: int, draw: np.random.Generator, constants: Constants | None = None
) -> NDArray[np.uint8]:
    """Return a corrupted copy of ``image`` (H, W, 3), RGB. Everything random comes from ``draw``.

    As strong as ``constants`` say; as those for the image's shorter side, if not given.

    Raises:
        UserError: if there is no such corruption or severity, or the image is not 8-bit RGB of 32 x 32 pixels or more.
    """
    check_names([name], [severity])
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < SMALLEST:
        raise UserError(
            f"{name}: expected an 8-bit RGB image, uint8 (height, width, 3), of at least {SMALLEST} x {SMALLEST} pixels, "
            f"found {image.dtype} {image.shape}. Convert or enlarge it first."
        )
    row = (constants or constants_for(min(image.shape[:2]))).rows[name][severity - 1]
    return to_bytes(_FUNCTIONS[name](from_bytes(image), draw, *row))


def draw_of(name: str, severity: int, index: int) -> np.random.Generator:
    """Return the generator for image ``index`` of a dataset: it depends on these three alone."""
    return generator(RngStream.CORRUPTION, NAMES.index(name), severity, index)
