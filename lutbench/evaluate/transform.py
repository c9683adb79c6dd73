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

BICUBIC = v2.InterpolationMode.BICUBIC


def eval_transform(side: int, eval_crop: float) -> Transform:
    """Return the transform to the centre, uint8 (3, S, S): resized as :func:`resize_for_crop` does, then cropped (MAE)."""
    return partial(_centre, side=side, eval_crop=eval_crop)


def _centre(image: Image.Image, side: int, eval_crop: float) -> Tensor:
    return to_tensor(v2.functional.center_crop(resize_for_crop(image, side, eval_crop), [side, side]))


def resize_for_crop(
    image: Image.Image, side: int, eval_crop: float, interpolation: v2.InterpolationMode = BICUBIC
) -> Image.Image:
    """Resize the short side of ``image`` to ``side / eval_crop``, rounded down: 256 for a crop of 224 and 224 / 256."""
    resized: Image.Image = v2.functional.resize(image, [math.floor(side / eval_crop + 1e-6)], interpolation)
    return resized
