"""Convert images to tensors. Pixels stay uint8, a quarter of the size of float32, until they are on the model's device."""

from functools import lru_cache
from typing import overload

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.v2 import functional

from lutbench.data.decoding import Pixels

RESIZED_BY_TORCHVISION = ("bicubic", "bilinear")
"""Interpolations in which it differs from Pillow by a grey level at most; in others Pillow resizes pixels too."""


def to_tensor(image: Image.Image | Pixels | Tensor) -> Tensor:
    """Return contiguous uint8 pixels (3, H, W) of an RGB image, of pixels (H, W, 3), or of a tensor from torchvision."""
    if isinstance(image, Tensor):
        return image.contiguous()
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


@overload
def resize_short_side(image: Image.Image, side: int) -> Image.Image: ...
@overload
def resize_short_side(image: Pixels, side: int) -> Pixels: ...
def resize_short_side(image: Image.Image | Pixels, side: int) -> Image.Image | Pixels:
    """Resize the short side to ``side`` pixels, bicubic, with Pillow (images) or torchvision (arrays); unchanged if it has that size."""
    if isinstance(image, np.ndarray):
        if min(image.shape[:2]) == side:
            return image
        return pixels_of(functional.resize(channels_first(image), [side], functional.InterpolationMode.BICUBIC))
    if min(image.size) == side:
        return image
    resized: Image.Image = functional.resize(image, [side], functional.InterpolationMode.BICUBIC)
    return resized


def channels_first(pixels: Pixels) -> Tensor:
    """Return pixels (H, W, 3) as a uint8 tensor (3, H, W); without a copy if the array is writable."""
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)


def resizable(image: Image.Image | Pixels, interpolation: str) -> Image.Image | Tensor:
    """Return an image as what shall resize it takes it: torchvision pixels as uint8 (3, H, W), Pillow its own."""
    if isinstance(image, Image.Image):
        return image
    return channels_first(image) if interpolation in RESIZED_BY_TORCHVISION else Image.fromarray(image)


def pixels_of(tensor: Tensor) -> Pixels:
    """Return a uint8 tensor (3, H, W) as pixels (H, W, 3); without a copy for tensors derived from :func:`channels_first`."""
    pixels: Pixels = tensor.permute(1, 2, 0).numpy()
    return pixels


Colour = tuple[float, ...]
"""One value per channel, between 0 and 1."""


def normalised(
    pixels: Tensor,
    device: torch.device | None = None,
    mean: Colour = IMAGENET_DEFAULT_MEAN,
    std: Colour = IMAGENET_DEFAULT_STD,
) -> Tensor:
    """Return float32 pixels (..., 3, S, S) from uint8, normalised by mean and standard deviation; on ``device`` (default: that of ``pixels``)."""
    to = device or pixels.device
    return pixels.to(to, non_blocking=True).float().sub_(per_channel(to, mean)).div_(per_channel(to, std))


@lru_cache
def per_channel(device: torch.device, values: Colour) -> Tensor:
    """Return values on the scale 0 to 255, (3, 1, 1); cached, because creating them in every step would synchronise with the device."""
    return torch.tensor(values, device=device).mul(255).view(3, 1, 1)
