"""What a model sees of an image in evaluation: the centre, at the model's size."""

import math
from collections.abc import Callable
from functools import partial

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lutbench.data.tensors import to_tensor

Transform = Callable[[Image.Image], Tensor]
"""A function from an RGB image to a tensor (3, S, S)."""


def eval_transform(side: int, eval_crop: float, interpolation: str = "bicubic") -> Transform:
    """Return the transform to the centre, uint8 (3, S, S): resized as :func:`resize_for_crop` does, then cropped (MAE)."""
    return partial(_centre, side=side, eval_crop=eval_crop, interpolation=interpolation)


def _centre(image: Image.Image, side: int, eval_crop: float, interpolation: str) -> Tensor:
    return to_tensor(v2.functional.center_crop(resize_for_crop(image, side, eval_crop, interpolation), [side, side]))


def resize_for_crop(image: Image.Image, side: int, eval_crop: float, interpolation: str = "bicubic") -> Image.Image:
    """Resize the short side of ``image`` to ``side / eval_crop``, rounded down: 256 for a crop of 224 and 224 / 256."""
    mode = v2.InterpolationMode(interpolation)
    resized: Image.Image = v2.functional.resize(image, [math.floor(side / eval_crop + 1e-6)], mode)
    return resized
