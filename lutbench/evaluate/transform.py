"""Preprocessing of images in evaluation: resize and centre crop to the model's input size."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lutbench.data.decoding import Pixels
from lutbench.data.tensors import resizable, to_tensor

Transform = Callable[[Any], Tensor]
"""A function from an RGB image, Pillow's or pixels (H, W, 3), to a tensor (3, S, S)."""


def eval_transform(side: int, eval_crop: float, interpolation: str = "bicubic") -> Transform:
    """Return the transform to the centre, uint8 (3, S, S): resized as :func:`resize_for_crop` does, then cropped (MAE)."""
    return partial(_centre, side=side, eval_crop=eval_crop, interpolation=interpolation)


def _centre(image: Image.Image | Pixels, side: int, eval_crop: float, interpolation: str) -> Tensor:
    return centre(resize_for_crop(image, side, eval_crop, interpolation), side)


def resize_for_crop(
    image: Image.Image | Pixels, side: int, eval_crop: float, interpolation: str = "bicubic"
) -> Image.Image | Tensor:
    """Resize the short side of ``image`` to ``side / eval_crop``, rounded down: 256 for a crop of 224 and 224 / 256.

    An image of Pillow's is resized by Pillow, pixels (H, W, 3) by torchvision to uint8 (3, h, w).
    """
    mode = v2.InterpolationMode(interpolation)
    resized: Image.Image | Tensor = v2.functional.resize(
        resizable(image, interpolation), [math.floor(side / eval_crop + 1e-6)], mode
    )
    return resized


def centre(image: Image.Image | Tensor, side: int) -> Tensor:
    """Return the middle of an image, uint8 (3, S, S), contiguous; what lies outside of it is black."""
    return to_tensor(v2.functional.center_crop(image, [side, side]))
