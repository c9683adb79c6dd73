"""Two views of an image (release), and one noise per patch from which the mask is drawn.

Both views: short side resized to S (bicubic), random crop of S x S with 4 px of reflected padding, flipped half of the
time. View 2 is then changed in colour (``photometrics.py``). With ``crop = "random"`` the crop is MAE's random resized
crop instead.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from lutbench.data.tensors import normalised, resize_short_side, to_tensor
from lutbench.errors import UserError
from lutbench.models.encoders import create_vit
from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.photometrics import apply_in_batch, draw_photometrics

BICUBIC = functional.InterpolationMode.BICUBIC
RANDOM_CROP_SCALE = (0.2, 1.0)
"""Share of the image's area in the random resized crop (MAE, appendix A.1)."""
RANDOM_CROP_RATIO = (3 / 4, 4 / 3)
"""Aspect ratio of the random resized crop (MAE: torchvision's default)."""
FLIP = 0.5
"""Probability of a horizontal flip (release)."""


class PretrainTransform:
    """Turns an image into ``view1`` and ``view2``, uint8 (3, S, S), and ``noise``, float32 (N,) in [0, 1).

    Without the context loss there is no ``view2``. View 1 is drawn first, then the noise, then view 2: whatever is
    done with view 2, recipes of one crop get the same view 1 and noise. Draws from torch's global generator. Where the
    training device changes the colours, ``view2`` is as cropped, and ``photometrics``, float32 (11,), has the changes.

    Raises:
        UserError: when made, if the crop is too small for its padding.
    """

    def __init__(self, recipe: PretrainRecipe) -> None:
        with torch.device("meta"):
            self.patches: int = create_vit(recipe.encoder).patch_embed.num_patches
        self.recipe, self.side = recipe, recipe.encoder.image_size
        if recipe.crop_padding * 2 >= self.side:
            raise UserError(
                f"crop_padding = {recipe.crop_padding} pixels cannot be reflected in a crop of {self.side}: give less than half."
            )

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        if self.recipe.crop == "simple":  # the resize draws nothing: once for both views
            image = resize_short_side(image, self.side)
        sample = {"view1": to_tensor(self._crop(image)), "noise": torch.rand(self.patches)}
        if self.recipe.has_context:
            view2 = self._crop(image)
            if self.recipe.photometric:
                drawn = draw_photometrics()
                if self.recipe.photometrics_on == "device":
                    sample["photometrics"] = drawn.numbers()
                else:
                    view2 = drawn.apply(view2)
            sample["view2"] = to_tensor(view2)
        return sample

    def _crop(self, image: Image.Image) -> Image.Image:
        if self.recipe.crop == "simple":
            return padded_crop(image, self.side, self.recipe.crop_padding)
        return random_resized_crop(image, self.side)


@dataclass(frozen=True)
class Views:
    """The images and the mask noise of a batch, on the training device, normalised by ImageNet's mean and deviation."""

    view1: Tensor
    """(B, 3, S, S), float32."""
    view2: Tensor | None
    """(B, 3, S, S), float32; None without the context loss."""
    noise: Tensor
    """(B, N), float32."""

    @classmethod
    def from_batch(cls, batch: dict[str, Tensor], device: torch.device) -> Self:
        """Make views of stacked samples of :class:`PretrainTransform`."""
        view2 = batch.get("view2")
        if view2 is not None and "photometrics" in batch:
            view2 = apply_in_batch(view2.to(device, non_blocking=True), batch["photometrics"])
        return cls(
            view1=normalised(batch["view1"], device),
            view2=None if view2 is None else normalised(view2, device),
            noise=batch["noise"].to(device, non_blocking=True),
        )


def padded_crop(image: Image.Image, side: int, padding: int) -> Image.Image:
    """Return a random square of ``image`` padded by reflection, flipped half of the time. Draws 3 numbers.

    The same pixels as torchvision's RandomCrop(side, padding, padding_mode="reflect") and a flip, for the same
    position, but only the crop is padded, by slices: a fifth of the time on a 64 px image.
    """
    down, across, flip = torch.rand(3).tolist()
    upper, rows, above, below = _span(image.height, side, padding, down)
    left, columns, before, after = _span(image.width, side, padding, across)
    pixels = np.empty((side, side, 3), np.uint8)
    inside = image.crop((left, upper, left + columns, upper + rows))
    pixels[above : above + rows, before : before + columns] = np.asarray(inside)
    pixels[:above] = pixels[above + 1 : 2 * above + 1][::-1]
    pixels[side - below :] = pixels[side - 2 * below - 1 : side - below - 1][::-1]
    pixels[:, :before] = pixels[:, before + 1 : 2 * before + 1][:, ::-1]
    pixels[:, side - after :] = pixels[:, side - 2 * after - 1 : side - after - 1][:, ::-1]
    return Image.fromarray(pixels[:, ::-1] if flip < FLIP else pixels)


def random_resized_crop(image: Image.Image, side: int) -> Image.Image:
    """Return MAE's crop: 20 to 100 % of the area, resized to ``side`` (bicubic), flipped half of the time."""
    box = RandomResizedCrop.get_params(image, list(RANDOM_CROP_SCALE), list(RANDOM_CROP_RATIO))
    crop: Image.Image = functional.resized_crop(image, *box, [side, side], BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1).item() < FLIP else crop


def _span(length: int, side: int, padding: int, share: float) -> tuple[int, int, int, int]:
    """Cut ``side`` pixels from a line of ``length`` with ``padding`` on both ends, at ``share`` of all offsets.

    Returns the first pixel inside the line, how many are inside, and how many are missing before and after.
    """
    start = int(share * (length + 2 * padding - side + 1)) - padding
    first, last = max(start, 0), min(start + side, length)
    return first, last - first, first - start, start + side - last
