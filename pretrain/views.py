"""Two views of an image (released code), and one random number per patch from which the mask follows.

Both views: short side resized to S (bicubic), random crop S x S with 4 pixels of reflection padding, horizontal flip with probability
0.5. View 2 then gets the colour augmentation (``photometrics.py``). With ``crop = "random"`` the crop is MAE's random resized
crop instead.

The loader crops, the training device flips: the loader sends pixels (S, S, 3) and one bit for the flip.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from lutbench.data.decoding import Pixels
from lutbench.data.random_crop import FLIP, random_resized_crop
from lutbench.data.random_crop import Box as Box
from lutbench.data.tensors import normalised, per_channel, resize_short_side
from lutbench.errors import UserError
from lutbench.models.encoders import create_vit
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.batches import Rows, RowTransform
from pretrain.frameworks.vit import patchify
from pretrain.photometrics import apply_everywhere, apply_in_batch, draw_photometrics


class PretrainTransform(RowTransform):
    """Convert an image to ``view1`` and ``view2``, uint8 (S, S, 3), ``flips``, bool (V,), and ``noise``, float32 (N,) in [0, 1).

    Pillow images are resized with Pillow, arrays (H, W, 3) with torchvision, and those from a cache not at all. ``flips`` says which of the V
    views must still be flipped, see :func:`upright`. Without the context loss there is no ``view2``. The noise is drawn first, then view 1,
    then view 2, so that all recipes have the same masks, and recipes with the same crop the same view 1. Draws from PyTorch's global
    generator. If the colour augmentation runs on the training device, ``view2`` is the plain crop, and ``photometrics``, float32 (11,),
    holds the parameters. With per-token targets, ``boxes``, float32 (2, 7), holds the :class:`Box` of each view.

    Raises:
        UserError: on construction, if the crop is too small for its padding.
    """

    def __init__(self, recipe: PretrainRecipe) -> None:
        with torch.device("meta"):
            self.patches: int = create_vit(recipe.encoder).patch_embed.num_patches
        self.recipe, self.side = recipe, recipe.encoder.image_size
        if recipe.crop_padding * 2 >= self.side:
            raise UserError(
                f"crop_padding = {recipe.crop_padding} pixels cannot be reflected in a crop of {self.side}: set it to less than half."
            )

    def __call__(self, image: Image.Image | Pixels, rows: Rows | None = None) -> dict[str, Tensor]:
        if self.recipe.crop == "simple":  # the resize draws nothing: once for both views
            image = np.asarray(resize_short_side(image, self.side))
        noise = torch.rand(self.patches)
        view1, box1 = self._crop(image, "view1", rows)
        sample, flips = {"view1": torch.from_numpy(view1), "noise": noise}, [box1.flipped]
        if self.recipe.has_context:
            view2, box2 = self._crop(image, "view2", rows)
            flips.append(box2.flipped)
            if self.recipe.context_target == "tokens":
                sample["boxes"] = torch.tensor([box1, box2], dtype=torch.float32)
            if self.recipe.photometric:
                drawn = draw_photometrics()
                if self.recipe.photometrics_on == "device":
                    sample["photometrics"] = drawn.numbers()
                else:  # on the mirrored view: where blurs meet the border, left is not right
                    view2 = np.array(drawn.apply(Image.fromarray(view2[:, ::-1] if box2.flipped else view2)))
                    flips[1] = False
            sample["view2"] = torch.from_numpy(view2)
        return sample | {"flips": torch.from_numpy(np.array(flips))}

    def _crop(self, image: Image.Image | Pixels, name: str, rows: Rows | None) -> tuple[Pixels, Box]:
        if self.recipe.crop == "simple":
            pixels = rows.of(name, self.side, self.side, 3) if rows else np.empty((self.side, self.side, 3), np.uint8)
            return pixels, padded_crop(np.asarray(image), pixels, self.recipe.crop_padding)
        return random_resized_crop(image, self.side, self.recipe.crop_scale)


@dataclass(frozen=True)
class Views:
    """The images and the mask noise of a batch, on the training device, normalised by ImageNet's mean and deviation."""

    view1: Tensor
    """(B, 3, S, S), float32; or its patches (B, N, P * P * 3), see :meth:`from_batch`."""
    view2: Tensor | None
    """The same of view 2; None without the context loss."""
    noise: Tensor
    """(B, N), float32."""
    boxes: Tensor | None = None
    """(B, 2, 7), float32: the :class:`Box` of each view; None without per-token targets."""

    @classmethod
    def from_batch(
        cls,
        batch: dict[str, Tensor],
        device: torch.device,
        *,
        patch_size: int | None = None,
        compiled: bool = False,
    ) -> Self:
        """Make views of stacked samples of :class:`PretrainTransform`: images, or, with ``patch_size``, patches of that side.

        ``compiled``: colours are changed and patches made by a few fused kernels, which torch.compile writes for the device.
        """
        view1 = upright(batch["view1"], batch["flips"][:, 0], device)
        view2 = upright(batch["view2"], batch["flips"][:, 1], device) if "view2" in batch else None
        if view2 is not None and "photometrics" in batch:
            view2 = changed(view2, batch["photometrics"], compiled)

        def prepared(pixels: Tensor) -> Tensor:
            if patch_size is None:
                return normalised(pixels)
            values = per_channel(device, IMAGENET_DEFAULT_MEAN), per_channel(device, IMAGENET_DEFAULT_STD)
            return (compiled_once(normalised_patches) if compiled else normalised_patches)(pixels, *values, patch_size)

        return cls(
            view1=prepared(view1),
            view2=None if view2 is None else prepared(view2),
            noise=batch["noise"].to(device, non_blocking=True),
            boxes=batch["boxes"].to(device, non_blocking=True) if "boxes" in batch else None,
        )


def changed(pixels: Tensor, drawn: Tensor, compiled: bool) -> Tensor:
    """Return view 2 with its changes of colour, in the way that suits the device, see :mod:`pretrain.photometrics`."""
    if compiled:
        return compiled_once(apply_everywhere)(pixels, drawn.to(pixels.device, non_blocking=True))
    return (apply_everywhere if drawn.is_cuda else apply_in_batch)(pixels, drawn)


def normalised_patches(pixels: Tensor, mean: Tensor, std: Tensor, patch_size: int) -> Tensor:
    """Return float32 patches (B, N, P * P * 3) of uint8 ``pixels`` (B, 3, S, S), by mean and deviation of the channels in bytes."""
    return patchify((pixels.float() - mean) / std, patch_size)


@lru_cache
def compiled_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``function`` as torch.compile makes it, for batches of one size, the same each time."""
    return torch.compile(function, dynamic=False)


def upright(views: Tensor, flipped: Tensor, device: torch.device) -> Tensor:
    """Return views (B, S, S, 3), uint8, on ``device`` as (B, 3, S, S), contiguous, those mirrored that are ``flipped`` (B,)."""
    pixels = views.to(device, non_blocking=True)
    mirrored = flipped.to(device, non_blocking=True)[:, None, None, None]
    return torch.where(mirrored, pixels.flip(2), pixels).permute(0, 3, 1, 2).contiguous()


def padded_crop(image: Pixels, pixels: Pixels, padding: int) -> Box:
    """Fill ``pixels`` (S, S, 3) with a random square of ``image`` (H, W, 3), padded by reflection; return where it lies. Draws 3 numbers.

    Half of the time it is to be flipped, which is left to who takes it. Then these are the same pixels as those of torchvision's
    RandomCrop(side, padding, padding_mode="reflect") and a flip, for the same position, but only the crop is padded, by slices: a fifth
    of the time on a 64 px image.
    """
    side = len(pixels)
    down, across, flip = torch.rand(3).tolist()
    image_height, image_width, _ = image.shape
    upper, rows, above, below = _span(image_height, side, padding, down)
    left, columns, before, after = _span(image_width, side, padding, across)
    pixels[above : above + rows, before : before + columns] = image[upper : upper + rows, left : left + columns]
    if above:
        pixels[:above] = pixels[above + 1 : 2 * above + 1][::-1]
    if below:
        pixels[side - below :] = pixels[side - 2 * below - 1 : side - below - 1][::-1]
    if before:
        pixels[:, :before] = pixels[:, before + 1 : 2 * before + 1][:, ::-1]
    if after:
        pixels[:, side - after :] = pixels[:, side - 2 * after - 1 : side - after - 1][:, ::-1]
    return Box(upper - above, left - before, side, side, flip < FLIP, image_height, image_width)


def _span(length: int, side: int, padding: int, share: float) -> tuple[int, int, int, int]:
    """Cut ``side`` pixels from a line of ``length`` with ``padding`` on both ends, at ``share`` of all offsets.

    Returns the first pixel inside the line, how many are inside, and how many are missing before and after.
    """
    start = int(share * (length + 2 * padding - side + 1)) - padding
    first, last = max(start, 0), min(start + side, length)
    return first, last - first, first - start, start + side - last
