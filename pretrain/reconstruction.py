"""Pictures of what a student reconstructs: for each image the input, the visible patches, and the reconstruction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, resize, to_pil_image
from torchvision.utils import make_grid

from lutbench.data.tensors import normalised
from lutbench.files import whole_file
from lutbench.models.weights import read_weights
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.run import Run
from lutbench.run_weights import NotKeptError, weights_made
from lutbench.train.processes import accelerator
from lutbench.train.randomness import RngStream, generator
from pretrain.frameworks import build_framework
from pretrain.masking import visible_patches
from pretrain.student import Student
from pretrain.views import Views

READABLE = 192
"""Least side of a picture in the grid, in pixels; smaller ones are enlarged by whole factors (our choice)."""
PER_ROW = 2
"""Images, of three pictures each, side by side."""


@torch.no_grad()
def reconstruct(student: Student, views: Views, count: int | None = None) -> Tensor:
    """Return view 1 (B, 3, S, S), normalised like the input, with masked patches replaced by the student's predictions.

    ``count`` mask units are visible, as many as in training if not given.
    """
    visible = visible_patches(views.noise, count or student.visible_count, student.framework.mask_unit).view1
    tokens = student.framework.encode(student.encoder, views.view1, visible)
    pixels = student.decoder(tokens, visible).float()
    return student.framework.reconstruct(pixels, views.view1, visible)


def reconstruction_grid(student: Student, views: Views, path: Path, count: int = 8) -> None:
    """Write a PNG of the first ``count`` images of ``views``: input, masked (grey) and reconstruction, left to right.

    Raises:
        UserError: on a full disk.
    """
    with whole_file(path) as partial:
        picture_of(student, views, count).save(partial, format="PNG")


@torch.no_grad()
def picture_of(student: Student, views: Views, count: int, most: int | None = None) -> Image:
    """Return what :func:`reconstruction_grid` writes, as a picture; its pictures have a side of ``most`` pixels at most, if given."""
    shown = Views(view1=views.view1[:count], view2=None, noise=views.noise[:count])
    triples = torch.stack([shown.view1, _masked(student, shown), reconstruct(student, shown)], dim=1)
    pictures = _as_colours(triples.flatten(0, 1))
    side = pictures.shape[-1]
    if most is None:
        pictures = resize(pictures, [side * max(1, -(-READABLE // side))], InterpolationMode.NEAREST)
    elif side > most:
        pictures = resize(pictures, [most], InterpolationMode.BILINEAR, antialias=True)
    picture: Image = to_pil_image(make_grid(pictures, nrow=3 * PER_ROW, padding=4, pad_value=1.0))
    return picture


def reconstructions(run: Run[PretrainRecipe], images: Tensor, ratios: Sequence[float]) -> Tensor | None:
    """Return the reconstructions by a finished run's student of ``images`` (B, 3, S, S), uint8, masked with each of the ``ratios``.

    They are (len(ratios), B, 3, S, S), uint8, on the CPU; visible patches (at least one) are unchanged. Masks are the same for all runs with
    the same number of patches, and nested: a higher ratio masks everything that a lower one does. The network computes in float32. None,
    with a log line, for old runs without a stored decoder.

    Raises:
        UserError: if encoder or decoder were changed since the run finished.
    """
    student = _student_of(run)
    if student is None:
        return None
    device = accelerator().device
    noise = picture_noise(len(images), student.encoder.patch_embed.num_patches)
    views = Views(normalised(images, device), None, noise.to(device))
    student = student.to(device).eval()
    units = noise.shape[1] // student.framework.mask_unit**2
    counts = [max(1, int(units * (1 - ratio))) for ratio in ratios]
    return torch.stack([_as_bytes(reconstruct(student, views, count)) for count in counts])


def picture_noise(images: int, patches: int) -> Tensor:
    """Return the noise (B, N), float32 in [0, 1), that masks images in pictures: of an image's place and the number of patches alone."""
    drawn = [generator(RngStream.PICTURE, patches, place).random(patches, np.float32) for place in range(images)]
    return torch.from_numpy(np.stack(drawn))


def _student_of(run: Run[PretrainRecipe]) -> Student | None:
    """Return encoder and decoder that a finished run left; None, with a line that says so, if it kept no decoder."""
    try:
        sha256 = weights_made(run, "decoder")
    except NotKeptError as error:
        run.log(f"no reconstructions: {error}")
        return None
    encoder, framework = build_framework(run.recipe, run.seed)
    encoder.load_state_dict(read_weights(run.finished_in / "encoder.safetensors", weights_made(run, "encoder")))
    framework.decoder.load_state_dict(read_weights(run.finished_in / "decoder.safetensors", sha256))
    return Student(encoder, framework, mask_ratio=run.recipe.mask_ratio)


def _masked(student: Student, views: Views) -> Tensor:
    """Return view 1 (B, 3, S, S) with its masked patches set to ImageNet's mean colour, which is zero as normalised."""
    visible = visible_patches(views.noise, student.visible_count, student.framework.mask_unit).view1
    mask = torch.zeros_like(views.noise).scatter(1, visible, 1.0)
    grid = student.encoder.patch_embed.grid_size
    mask = resize(mask.reshape(-1, 1, *grid), list(views.view1.shape[2:]), InterpolationMode.NEAREST)
    masked: Tensor = views.view1 * mask
    return masked


def _as_bytes(images: Tensor) -> Tensor:
    """Return images (B, 3, S, S), normalised by ImageNet's mean and deviation, as uint8 on the CPU."""
    return _as_colours(images).mul(255).round().to(torch.uint8)


def _as_colours(images: Tensor) -> Tensor:
    """Return images (B, 3, S, S), normalised by ImageNet's mean and deviation, as colours in [0, 1] on the CPU."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    deviation = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    return (images.float().cpu() * deviation + mean).clamp(0, 1)
