"""Pixels on their way to a model: bytes until they are on its device, a quarter of the size of floats."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """uint8 (3, H, W) of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalised(pixels: Tensor, device: torch.device) -> Tensor:
    """float32 (B, 3, S, S) on ``device`` from uint8, by ImageNet's mean and deviation."""
    mean, std = _mean_and_deviation(device)
    return pixels.to(device, non_blocking=True).float().sub_(mean).div_(std)


@lru_cache
def _mean_and_deviation(device: torch.device) -> tuple[Tensor, Tensor]:
    """In bytes, (3, 1, 1) each; kept, since making them anew would wait for the device in every step."""
    mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return mean.mul(255).view(3, 1, 1), std.mul(255).view(3, 1, 1)
