"""Preprocess an image of a test set to the classifier's input, by the protocol of the test set.

- ``bicubic``, ``bilinear``: resize the short side to S / eval_crop, then centre crop S x S. MAE and timm resize bicubic; torchvision,
  and so the code of ImageNet-A, -R and -O, bilinear.
- ``own``: interpolation and crop of the classifier's weights, with timm's own transform, to compare with timm's numbers.
- ``crop``: centre crop S x S of an image stored at that size or larger (hendrycks/robustness ImageNet-C/test.py).
- ``whole``: the unchanged image (ImageNet-9, Stylized-ImageNet).

The last two never resize, so they reject images of an unsuitable size.
"""

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from lutbench.data.decoding import Pixels
from lutbench.data.tensors import channels_first
from lutbench.errors import UserError
from lutbench.evaluate.transform import resize_for_crop
from lutbench.models.preprocessing import Preprocessing
from lutbench.recipes.robustness import Resizing, RobustnessDatasetRecipe

LEAST = 16
"""Pixels that are left of an image's shorter side at least where a border is cut off: a patch of most encoders."""

_RESIZED: tuple[Resizing, ...] = ("bicubic", "bilinear")


def all_views(
    image: Image.Image | Pixels,
    recipe: RobustnessDatasetRecipe,
    side: int,
    eval_crop: float,
    prepared: Preprocessing,
) -> Tensor:
    """Return an image preprocessed in every way of the recipe, uint8 (V, S, S, 3), decoded once.

    The channels stay last, as they are decoded, until the pixels are on the model's device: to move them takes a processor a fifth of
    the time of decoding.

    Raises:
        UserError: see :func:`view`.
    """
    views = [view(image, recipe, how, side, eval_crop, prepared).permute(1, 2, 0) for how in recipe.preprocessing]
    return torch.stack(views) if len(views) > 1 else views[0][None]


def view(
    image: Image.Image | Pixels,
    recipe: RobustnessDatasetRecipe,
    how: Resizing,
    side: int,
    eval_crop: float,
    prepared: Preprocessing,
) -> Tensor:
    """Return an RGB image, Pillow's or pixels (H, W, 3), which torchvision resizes, as uint8 (3, S, S); ``eval_crop`` holds where the recipe has none, ``prepared`` is the classifier's own.

    Raises:
        UserError: if too little is left of it, or it is stored at a size at which it is not to be resized.
    """
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    if recipe.border and min(width, height) - 2 * recipe.border < LEAST:
        raise UserError(
            f"{recipe.name}: border = {recipe.border} pixels on every side leaves fewer than {LEAST} pixels of an image of {width} x "
            f"{height}. Lower border, or remove such images."
        )
    inner = _without_border(image, recipe.border) if recipe.border else image
    size = (width - 2 * recipe.border, height - 2 * recipe.border)
    if how == "own":
        crop_pct = prepared.crop_pct or eval_crop  # a fine-tuning's own is the run's
        pixels: Tensor = transforms_imagenet_eval(
            side,
            crop_pct,
            crop_mode=prepared.crop_mode,
            interpolation=prepared.interpolation,
            mean=prepared.mean,
            use_prefetcher=True,  # which leaves pixels in bytes
        )(inner if isinstance(inner, Image.Image) else Image.fromarray(inner))
        return pixels
    if how in _RESIZED:
        return _middle(resize_for_crop(inner, side, recipe.eval_crop or eval_crop, how), side)
    if min(size) < side or (how == "whole" and size != (side, side)):
        expected = f"{side} x {side}" if how == "whole" else f"at least {side} x {side}"
        raise UserError(
            f"{recipe.name}: expected images of {expected} pixels, the classifier's input size, found one of "
            f"{size[0]} x {size[1]}. The protocol of this test set does not resize: use a classifier for images of that "
            'size, or set preprocessing = ["bicubic"]; results are then not comparable with published ones.'
        )
    return _middle(inner if isinstance(inner, Image.Image) else channels_first(inner), side)


def _middle(image: Image.Image | Tensor, side: int) -> Tensor:
    cut = center_crop(image, [side, side])
    return cut if isinstance(cut, Tensor) else channels_first(np.array(cut))


def _without_border(image: Image.Image | Pixels, border: int) -> Image.Image | Pixels:
    """Return what is left of an image where so many pixels are cut off on every side."""
    return ImageOps.crop(image, border) if isinstance(image, Image.Image) else image[border:-border, border:-border]


def preprocessing_label(how: Resizing) -> str:
    """Return what a metric's name says of the preprocessing: nothing where images are not resized, since that is no choice."""
    return how if how in (*_RESIZED, "own") else ""
