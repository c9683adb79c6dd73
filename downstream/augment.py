"""Training augmentation of classifiers: timm's augmentation for fine-tuning, and MAE's linear-probe crops.

All draw from the global random generators of Python, NumPy and PyTorch, and return uint8 pixels, which are normalised on the device. The
rectangles of random erasing are drawn with the image but applied on the device, because the noise is for normalised pixels.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from lutbench.data.decoding import Pixels
from lutbench.data.random_crop import random_resized_crop
from lutbench.data.tensors import Colour, to_tensor
from lutbench.evaluate.transform import Transform
from lutbench.models.preprocessing import Preprocessing
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.probes import LinearRecipe


def train_transform(recipe: FinetuneRecipe, prepared: Preprocessing) -> Callable[[Image.Image], dict[str, Tensor]]:
    """Fine-tuning: random resized crop, flip, RandAugment and random erasing with noise, all timm's (as MAE).

    Resized as the encoder is ``prepared`` for. A sample has ``image``, uint8 (3, S, S), and where some are erased ``erased``, (4,), the
    rectangle's top, left, height and width, all 0 where there is none, and its ``erased_noise``, float32 (3 * height * width,). See
    :func:`classifier_input`.
    """
    augment = create_transform(
        recipe.side,
        is_training=True,
        scale=(recipe.crop_scale[0], recipe.crop_scale[1]),
        hflip=recipe.flip,
        color_jitter=0.0,
        auto_augment=recipe.rand_augment or None,
        interpolation=prepared.interpolation,
        use_prefetcher=True,  # which leaves pixels in bytes, and erases nothing
        mean=prepared.mean,
        std=prepared.std,
    )
    erasing = RandomErasing(recipe.erasing, mode="pixel", device="cpu") if recipe.erasing else None
    return partial(_augmented, augment=augment, erasing=erasing)


def _augmented(image: Image.Image, augment: Any, erasing: RandomErasing | None) -> dict[str, Tensor]:
    pixels = torch.as_tensor(augment(image)).contiguous()
    if erasing is None:
        return {"image": pixels}
    rectangle = _Rectangle(pixels.shape)
    erasing(rectangle)
    return {"image": pixels, "erased": torch.tensor(rectangle.place), "erased_noise": rectangle.noise.flatten()}


class _Rectangle:
    """Takes from timm's RandomErasing, in the place of a float32 image of that ``shape``, what it would write there."""

    dtype = torch.float32

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape
        self.place = (0, 0, 0, 0)
        self.noise = torch.empty(0)

    def size(self) -> torch.Size:
        return self.shape

    def __setitem__(self, where: tuple[slice, slice, slice], noise: Tensor) -> None:
        self.place, self.noise = (where[1].start, where[2].start, *noise.shape[1:]), noise


def classifier_input(batch: dict[str, Tensor], device: torch.device, prepared: Preprocessing) -> Tensor:
    """Return what fine-tuning's classifier sees of stacked samples, float32 (B, 3, S, S), normalised and erased on ``device``.

    In timm's order of operations, so that the bits are those of its own transform.
    """
    mean, std = _on(device, prepared.mean), _on(device, prepared.std)
    images = batch["image"].to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)
    if "erased" in batch:
        noise = batch["erased_noise"].to(device, non_blocking=True)
        first = 0
        for image, (top, left, height, width) in zip(images, batch["erased"].tolist(), strict=True):
            last = first + 3 * height * width
            image[:, top : top + height, left : left + width] = noise[first:last].view(3, height, width)
            first = last
    return images


@lru_cache
def _on(device: torch.device, values: Colour) -> Tensor:
    """Return values (3, 1, 1); kept, since making them anew would wait for the device in every step."""
    return torch.tensor(values, device=device).view(3, 1, 1)


def linear_transform(recipe: LinearRecipe | AttentiveRecipe, prepared: Preprocessing) -> Transform:
    """Probes: random resized crop and flip (MAE, table 10: no other augmentation)."""
    return partial(_cropped, side=recipe.side, scale=recipe.crop_scale, interpolation=prepared.interpolation)


def _cropped(image: Image.Image | Pixels, side: int, scale: Sequence[float], interpolation: str) -> Tensor:
    pixels, box = random_resized_crop(image, side, scale, interpolation)
    return to_tensor(pixels[:, ::-1] if box.flipped else pixels)
