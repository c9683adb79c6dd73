"""The colour augmentation of view 2 (released code): colour jitter with probability 0.8, then one of grayscale, solarisation and blur.

Parameters are drawn per image in the loader; the augmentation is applied there with Pillow, or in batches on the training device.
:func:`apply_in_batch` computes the same as Pillow, with rounding to whole grey levels after every operation, in the same order for every
image, so that an image's pixels do not depend on its batch. Differences to Pillow: occasionally one grey level, from float32, and the
blur at borders.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import ColorJitter
from torchvision.transforms.v2 import functional

Effect = Literal["grayscale", "solarize", "blur"]
EFFECTS: tuple[Effect, ...] = get_args(Effect)
JITTER = 0.8
"""Probability of the colour jitter of view 2 (release)."""
COLOUR_RANGES = ([0.6, 1.4], [0.6, 1.4], [0.8, 1.2], [-0.1, 0.1])
"""Factors of brightness, contrast and saturation and the shift of hue: 0.4, 0.4, 0.2 and 0.1 (release)."""
SOLARIZE_THRESHOLD = 128
BLUR_RADIUS = (0.1, 2.0)
"""Standard deviation of the blur in pixels, uniform (release; 3-Augment)."""
BLUR_PASSES = 3
"""Box blurs, one after another, of which Pillow's Gaussian blur consists."""


@dataclass(frozen=True)
class Photometrics:
    """The colour augmentation drawn for one view 2."""

    jittered: bool
    order: tuple[int, ...]
    """The indices of the four factors, in the order in which they are applied."""
    factors: tuple[float, ...]
    """Brightness, contrast, saturation, hue."""
    effect: Effect
    radius: float
    """Standard deviation of the blur, in pixels."""

    def numbers(self) -> Tensor:
        """Return jittered, order, factors, effect and radius, float32 (11,), as :func:`apply_in_batch` takes them."""
        effect = float(EFFECTS.index(self.effect))
        values = [float(self.jittered), *self.order, *self.factors, effect, self.radius]
        return torch.from_numpy(np.array(values, np.float32))  # a third of the time of torch.tensor

    def apply(self, image: Image.Image) -> Image.Image:
        """Return ``image``, RGB, with these changes, made with Pillow."""
        if self.jittered:
            for which in self.order:
                image = _ADJUST[which](image, self.factors[which])
        if self.effect == "grayscale":
            return image.convert("L").convert("RGB")
        if self.effect == "solarize":
            return ImageOps.solarize(image, SOLARIZE_THRESHOLD)
        return image.filter(ImageFilter.GaussianBlur(self.radius))


def draw_photometrics() -> Photometrics:
    """Draw all numbers, also unused ones, so that later draws do not depend on which are used.

    Draws from PyTorch's global generator.
    """
    order, *factors = ColorJitter.get_params(*COLOUR_RANGES)
    jitter, effect, blur = torch.rand(3).tolist()
    return Photometrics(
        jittered=jitter < JITTER,
        order=tuple(order.tolist()),
        factors=tuple(factors),
        effect=EFFECTS[int(effect * 3)],
        radius=BLUR_RADIUS[0] + blur * (BLUR_RADIUS[1] - BLUR_RADIUS[0]),
    )


def apply_everywhere(pixels: Tensor, drawn: Tensor) -> Tensor:
    """Compute the same as :func:`apply_in_batch`, by applying every operation to every image and selecting the drawn ones: for torch.compile.

    This is more arithmetic, but the same for every batch: a compiler fuses it into a few kernels, and nothing is selected on the CPU.
    ``drawn`` is on the same device. Compiled code may round a product and a sum together: occasionally one grey level.
    """
    drawn = drawn.view(-1, 11, 1, 1, 1)
    images = pixels.float()
    jittered = drawn[:, 0] > 0
    for turn in range(4):
        which = drawn[:, 1 + turn]
        changed = images
        for number, adjust in enumerate(_ADJUST_IN_BATCH):
            changed = torch.where(jittered & (which == number), adjust(images, drawn[:, 5 + number]), changed)
        images = changed
    effect, radius = drawn[:, 9], drawn[:, 10]
    changed = torch.where(effect == 0, _grayscale(images, radius), _solarize(images, radius))
    return torch.where(effect == 2, _blur(images, radius), changed).to(torch.uint8)


def apply_in_batch(pixels: Tensor, drawn: Tensor) -> Tensor:
    """Return view 2 (B, 3, S, S), uint8, with the augmentation ``drawn``, float32 (B, 11), see :meth:`Photometrics.numbers`.

    ``drawn`` stays on the CPU, where the images for each operation are selected, so that nothing waits for the device. Every operation is
    applied only to the images it is drawn for, which suits a CPU; :func:`apply_everywhere` suits a GPU.
    """
    changed = pixels.float()
    jittered = drawn[:, 0] > 0
    for turn in range(4):
        for which, adjust in enumerate(_ADJUST_IN_BATCH):
            chosen = jittered & (drawn[:, 1 + turn] == which)
            _change(changed, chosen, adjust, drawn[:, 5 + which])
    for which, effect in enumerate((_grayscale, _solarize, _blur)):
        _change(changed, drawn[:, 9] == which, effect, drawn[:, 10])
    return changed.to(torch.uint8)


def _change(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], amounts: Tensor) -> None:
    """Change those of ``images`` (B, 3, S, S) that are ``chosen`` (B,), in place, each by its own amount."""
    index = chosen.nonzero().flatten()
    if len(index):
        on_device = index.to(images.device, non_blocking=True)
        amount = amounts[index].to(images.device, non_blocking=True).view(-1, 1, 1, 1)
        images[on_device] = change(images[on_device], amount)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(images)
    count = grey[0].numel()
    total = grey.to(torch.int64).sum((1, 2, 3), keepdim=True)
    mean = (2 * total + count) // (2 * count)  # rounded, and exact whatever the number of pixels
    return _blend(mean.float(), images, factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(images), images, factor)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Move the hue as Pillow does: in 8-bit hue and saturation, by whole steps of a 256th of the circle."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    spread = value - least
    safe = spread.clamp(min=1)
    to_red, to_green, to_blue = ((value - channel) / safe for channel in (red, green, blue))
    hue = torch.where(
        red == value,
        to_blue - to_green,
        torch.where(green == value, 2 + to_red - to_blue, 4 + to_green - to_red),
    )
    hue = ((hue / 6 + 1) % 1 * 255).floor().where(spread > 0, 0)
    saturation = (spread * 255 / value.clamp(min=1)).floor()
    hue = (hue + (shift.view(-1, 1, 1) * 255).trunc()) % 256
    sixth = hue * 6 / 255
    sector = sixth.floor()
    within, share = sixth - sector, saturation / 255
    low = (value * (1 - share) + 0.5).floor()
    falling = (value * (1 - share * within) + 0.5).floor()
    rising = (value * (1 - share * (1 - within)) + 0.5).floor()
    turns = [
        torch.stack(channels, 1)
        for channels in (
            (value, rising, low), (falling, value, low), (low, value, rising),
            (low, falling, value), (rising, low, value), (value, low, falling),
        )
    ]  # fmt: skip
    sector = (sector % 6)[:, None]
    result = turns[0]
    for number in range(1, 6):
        result = torch.where(sector == number, turns[number], result)
    return result


def _grayscale(images: Tensor, _: Tensor) -> Tensor:
    return _grey(images).expand_as(images)


def _solarize(images: Tensor, _: Tensor) -> Tensor:
    return torch.where(images < SOLARIZE_THRESHOLD, images, 255 - images)


def _blur(images: Tensor, radius: Tensor) -> Tensor:
    """Blur thrice with a box of fractional width, along rows and columns; the border's pixels are repeated outside.

    The images are shifted and summed term by term: a convolution may sum in another order for another batch.
    """
    whole, weight, edge = _box(radius)
    reach = REACH  # not that of this batch: reading it would wait for the device
    for axis in (3, 2):
        for _ in range(BLUR_PASSES):
            padding = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
            wide = torch.nn.functional.pad(images, padding, mode="replicate")
            total = images * weight
            for step in range(1, reach + 1):
                part = torch.where(whole >= step, weight, torch.where(whole + 1 == step, edge, 0))
                before = wide.narrow(axis, reach - step, images.shape[axis])
                after = wide.narrow(axis, reach + step, images.shape[axis])
                total = total + (before + after) * part
            images = (total + 0.5).floor()
    return images


def _box(radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return reach, weight and edge weight of the box whose :data:`BLUR_PASSES` passes have the deviation ``radius``.

    Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering", as Pillow has it.
    """
    variance = radius**2 / BLUR_PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    weight = 1 / (2 * (whole + fraction) + 1)
    return whole, weight, weight * fraction


REACH = int(_box(torch.tensor(BLUR_RADIUS[1]))[0]) + 1
"""Pixels on either side that the widest box takes something of."""


def _grey(images: Tensor) -> Tensor:
    """Return Pillow's luminance (B, 1, S, S): Rec. 601 in 16-bit fixed point."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None].float()


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    return (start + factor * (end - start)).clamp(0, 255).floor()


_ADJUST = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)
_ADJUST_IN_BATCH = (_brightness, _contrast, _saturation, _hue)
