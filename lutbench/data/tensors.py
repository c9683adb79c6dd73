"""Pixels on their way to a model: bytes until they are on its device, a quarter of the size of floats."""

from functools import lru_cache
from typing import overload

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.v2 import functional

from lutbench.data.decoding import Pixels


def to_tensor(image: Image.Image | Tensor) -> Tensor:
    """Return uint8 pixels (3, H, W), contiguous, of an RGB image, or of pixels as torchvision left them."""
    if isinstance(image, Tensor):
        return image.contiguous()
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@overload
def resize_short_side(image: Image.Image, side: int) -> Image.Image: ...
@overload
def resize_short_side(image: Pixels, side: int) -> Pixels: ...
def resize_short_side(image: Image.Image | Pixels, side: int) -> Image.Image | Pixels:
    """Return ``image`` with a short side of ``side`` pixels, bicubic, by Pillow or of pixels by torchvision; itself if it has that already."""
    if isinstance(image, np.ndarray):
        if min(image.shape[:2]) == side:
            return image
        return pixels_of(functional.resize(channels_first(image), [side], functional.InterpolationMode.BICUBIC))
    if min(image.size) == side:
        return image
    resized: Image.Image = functional.resize(image, [side], functional.InterpolationMode.BICUBIC)
    return resized


def channels_first(pixels: Pixels) -> Tensor:
    """Return pixels (H, W, 3) as torchvision takes them, uint8 (3, H, W), without copying what may be written to."""
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)


def pixels_of(tensor: Tensor) -> Pixels:
    """Return uint8 (3, H, W) as pixels (H, W, 3), without copying what torchvision made of :func:`channels_first`."""
    pixels: Pixels = tensor.permute(1, 2, 0).numpy()
    return pixels


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
