"""MAE's random resized crop, which pre-training, probes and the second views of an analysis take."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from lutbench.data.decoding import Pixels
from lutbench.data.tensors import pixels_of, resizable

RATIO = (3 / 4, 4 / 3)
"""Aspect ratio of the crop (MAE: torchvision's default; SimMIM, section 4.1.1)."""
FLIP = 0.5
"""Probability of a horizontal flip (release)."""


class Box(NamedTuple):
    """Position of a view in its image; for the simple crop, in the resized image."""

    upper: int
    left: int
    height: int
    width: int
    """In pixels; in padding, less than 0 or more than the image's."""
    flipped: bool
    image_height: int
    image_width: int


def random_resized_crop(
    image: Image.Image | Pixels, side: int, scale: Sequence[float], interpolation: str = "bicubic"
) -> tuple[Pixels, Box]:
    """Return MAE's crop, a ``scale`` of the area, resized to ``side``, and where it lies; half of the time it is to be flipped.

    The flip is left to who takes it. An image of Pillow's is resized by Pillow, pixels (H, W, 3) by torchvision. Draws from PyTorch's
    global generator.
    """
    source = resizable(image, interpolation)
    upper, left, height, width = RandomResizedCrop.get_params(source, list(scale), list(RATIO))
    flipped = torch.rand(1).item() < FLIP
    part = functional.crop(source, upper, left, height, width)
    if isinstance(part, Tensor):  # torch resizes pixels that lie together in half of the time
        part = part[None].contiguous(memory_format=torch.channels_last)[0]
    resized = functional.resize(part, [side, side], functional.InterpolationMode(interpolation))
    image_height, image_width = functional.get_size(source)
    box = Box(upper, left, height, width, flipped, image_height, image_width)
    return pixels_of(resized) if isinstance(resized, Tensor) else np.array(resized), box
