"""Per-token targets (control): the teacher's features at the position in the image that a token of the student's other view shows.

Both views are crops of the same image; :mod:`pretrain.views` provides their boxes. The centre of a visible patch of one view is a point in the
image. If it is inside the other view, the token's target is the bilinear interpolation of the teacher's patch tokens at this point. Points in
the reflection padding of a view are outside the image and are ignored, as they show the mirror image of another position. Position-based
matching as in VICRegL (arXiv 2210.01571) and PixPro (arXiv 2011.10043) for convolutional feature maps; the form is our choice.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Matches(NamedTuple):
    """Positions of the visible patches of one view in the other view."""

    places: Tensor
    """(B, K, 2), float32: across and down, from -1 to 1 inside the other view, as ``grid_sample`` takes them."""
    matched: Tensor
    """(B, K), bool: whether the place is in the image and in the other view."""


def match(own: Tensor, other: Tensor, visible: Tensor, grid: int) -> Matches:
    """Return where the centres of the patches ``visible`` (B, K) of one view's ``grid`` lie in the other view.

    ``own`` and ``other`` (B, 7) are the views' boxes, see :class:`pretrain.views.Box`. Products come before quotients: of
    the simple crop, whose corners are whole pixels, all is exact in float32, and so is what lies on a border.
    """
    upper, left, height, width, flipped, image_height, image_width = own.unsqueeze(-1).unbind(1)
    row, column = torch.div(visible, grid, rounding_mode="floor"), visible % grid
    across = (column + 0.5) * width / grid
    y = upper + (row + 0.5) * height / grid
    x = left + torch.where(flipped > 0, width - across, across)
    inside = (y >= 0) & (y <= image_height) & (x >= 0) & (x <= image_width)

    upper, left, height, width, flipped, *_ = other.unsqueeze(-1).unbind(1)
    down, across = y - upper, x - left
    inside &= (down >= 0) & (down <= height) & (across >= 0) & (across <= width)
    across = torch.where(flipped > 0, width - across, across)
    return Matches(torch.stack([2 * across / width - 1, 2 * down / height - 1], dim=-1), inside)


def interpolate(tokens: Tensor, places: Tensor, grid: int) -> Tensor:
    """Return ``tokens`` (B, N, D) of a row-major ``grid`` at ``places`` (B, K, 2), interpolated bilinearly: (B * K, D), float32.

    Between a border and the centres of the patches along it, the nearest of these count.
    """
    maps = tokens.float().transpose(1, 2).unflatten(2, (grid, grid))
    found = functional.grid_sample(maps, places.unsqueeze(2), padding_mode="border", align_corners=False)
    return found.squeeze(3).transpose(1, 2).flatten(0, 1)


def shares(matched: Tensor) -> Tensor:
    """Return the weights (B * K,) of tokens in the loss: the mean over the matched tokens of an image, and over all B images.

    An image without a match adds nothing, and none to the others: B stays, so that a batch's loss is the mean of its
    micro-batches' and of its processes', however matches are spread.
    """
    count = matched.sum(dim=1, keepdim=True).clamp(min=1)
    return (matched / count / len(matched)).flatten()
