"""Pictures of what a student reconstructs: for each image the input, the visible patches, and the reconstruction."""

from pathlib import Path

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, resize, to_pil_image
from torchvision.utils import make_grid

from lutbench.files import whole_file
from pretrain.masking import visible_patches
from pretrain.student import Student
from pretrain.views import Views

READABLE = 192
"""Least side of a picture in the grid, in pixels; smaller ones are enlarged by whole factors (our choice)."""
PER_ROW = 2
"""Images, of three pictures each, side by side."""


@torch.no_grad()
def reconstruct(student: Student, views: Views) -> Tensor:
    """Return view 1 (B, 3, S, S), normalised as it came, its masked patches replaced by what the student predicts."""
    visible = visible_patches(views.noise, student.visible_count).view1
    tokens = student.framework.encode(student.encoder, views.view1, visible)
    pixels = student.decoder(tokens, visible).float()
    return student.framework.reconstruct(pixels, views.view1, visible)


def reconstruction_grid(student: Student, views: Views, path: Path, count: int = 8) -> None:
    """Write a PNG of the first ``count`` images of ``views``: input, masked (grey) and reconstruction, left to right.

    Raises:
        UserError: on a full disk.
    """
    shown = Views(view1=views.view1[:count], view2=None, noise=views.noise[:count])
    triples = torch.stack([shown.view1, _masked(student, shown), reconstruct(student, shown)], dim=1)
    pictures = _as_colours(triples.flatten(0, 1))
    side = pictures.shape[-1]
    pictures = resize(pictures, [side * max(1, -(-READABLE // side))], InterpolationMode.NEAREST)
    grid = make_grid(pictures, nrow=3 * PER_ROW, padding=4, pad_value=1.0)
    with whole_file(path) as partial:
        to_pil_image(grid).save(partial, format="PNG")


def _masked(student: Student, views: Views) -> Tensor:
    """Return view 1 (B, 3, S, S) with its masked patches set to ImageNet's mean colour, which is zero as normalised."""
    visible = visible_patches(views.noise, student.visible_count).view1
    mask = torch.zeros_like(views.noise).scatter(1, visible, 1.0)
    grid = student.encoder.patch_embed.grid_size
    mask = resize(mask.reshape(-1, 1, *grid), list(views.view1.shape[2:]), InterpolationMode.NEAREST)
    masked: Tensor = views.view1 * mask
    return masked


def _as_colours(images: Tensor) -> Tensor:
    """Return images (B, 3, S, S), normalised by ImageNet's mean and deviation, as colours in [0, 1] on the CPU."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    deviation = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    return (images.float().cpu() * deviation + mean).clamp(0, 1)
