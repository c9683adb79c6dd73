"""Pixels on their way to a model: bytes until they are on its device, a quarter of the size of floats."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.v2 import functional


def to_tensor(image: Image.Image) -> Tensor:
    """Return uint8 pixels (3, H, W) of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize_short_side(image: Image.Image, side: int) -> Image.Image:
    """Return ``image`` with a short side of ``side`` pixels, bicubic; itself if it has that already."""
    if min(image.size) == side:
        return image
    resized: Image.Image = functional.resize(image, [side], functional.InterpolationMode.BICUBIC)
    return resized


Colour = tuple[float, ...]
"""A value of each channel, between 0 and 1."""


def normalised(
    pixels: Tensor,
    device: torch.device | None = None,
    mean: Colour = IMAGENET_DEFAULT_MEAN,
    std: Colour = IMAGENET_DEFAULT_STD,
) -> Tensor:
    """Return float32 pixels (..., 3, S, S) from uint8, by a mean and a deviation; on ``device``, or where ``pixels`` are."""
    to = device or pixels.device
    return pixels.to(to, non_blocking=True).float().sub_(per_channel(to, mean)).div_(per_channel(to, std))


@lru_cache
def per_channel(device: torch.device, values: Colour) -> Tensor:
    """Return values in bytes, (3, 1, 1); kept, since making them anew would wait for the device in every step."""
    return torch.tensor(values, device=device).mul(255).view(3, 1, 1)
