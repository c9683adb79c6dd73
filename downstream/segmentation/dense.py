"""Code that the dense probes share: sliding windows, and checks before a run."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from downstream.segmentation.task import check_data, check_installed
from downstream.segmentation.tokens import grid_of
from lutbench.models.pretrained import check_encoder_weights
from lutbench.recipes.dense import DenseRecipe
from lutbench.run import Run, row_named

Scores = Callable[[Tensor], Tensor]
"""What a probe says of windows (n, 3, S, S): scores of every class and patch (n, C, g, g)."""


def check_dense(run: Run[DenseRecipe]) -> None:
    """Find what would stop a dense probe before any compute is spent; every mask is read once.

    Raises:
        UserError: if MMSegmentation, whose pipelines read the images, is not installed; as :func:`check_weights` and
            :func:`downstream.segmentation.task.check_data`.
    """
    check_installed(run)
    check_weights(run)
    check_data(run)


def check_weights(run: Run[DenseRecipe]) -> None:
    """Check that the encoder gives the tokens that are asked for, and its weights, see :func:`check_encoder_weights`."""
    with row_named(run):
        grid_of(run.recipe)
    check_encoder_weights(run, run.recipe.crop)


def corners(height: int, width: int, crop: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners of windows that cover an image, the last of each row and column at its end (MMSegmentation's)."""

    def along(side: int) -> list[int]:
        last = max(0, side - crop)
        return [min(start, last) for start in range(0, last + stride, stride)]

    for top in along(height):
        for left in along(width):
            yield top, left


def padded(image: Tensor, crop: int, value: float = 0.0) -> Tensor:
    """Return ``image`` (..., H, W) enlarged to the right and below by ``value``, where it is smaller than the crop."""
    height, width = image.shape[-2:]
    larger: Tensor = functional.pad(image, (0, max(0, crop - width), 0, max(0, crop - height)), value=value)
    return larger


def windows_of(image: Tensor, recipe: DenseRecipe) -> Tensor:
    """Return the windows (n, ..., S, S) of an image or a mask (..., H, W) that is as large as one at least."""
    crop = recipe.crop
    places = corners(image.shape[-2], image.shape[-1], crop, recipe.stride)
    return torch.stack([image[..., top : top + crop, left : left + crop] for top, left in places])


def slide(image: Tensor, scores: Scores, recipe: DenseRecipe, size: tuple[int, int]) -> Tensor:
    """Return the classes (H', W') of ``size`` of a normalised image (3, H, W).

    The scores of each window are enlarged to its pixels, bilinearly, averaged where windows overlap, and resized to ``size``; a pixel's
    class has the highest. NaN scores give the class -1.
    """
    height, width = image.shape[-2:]
    whole = padded(image, recipe.crop)
    found = scores(windows_of(whole, recipe))
    total = found.new_zeros(found.shape[1], *whole.shape[-2:])
    counts = found.new_zeros(whole.shape[-2:])
    places = corners(whole.shape[-2], whole.shape[-1], recipe.crop, recipe.stride)
    for (top, left), of_window in zip(places, found, strict=True):
        place = (..., slice(top, top + recipe.crop), slice(left, left + recipe.crop))
        total[place] += enlarged(of_window[None], (recipe.crop, recipe.crop))[0]
        counts[place] += 1
    resized = enlarged((total / counts)[None, :, :height, :width], size)[0]
    return resized.argmax(0).where(resized.isfinite().all(0), -1)


def enlarged(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return scores (B, C, h, w) at every pixel of ``size``, bilinearly."""
    return functional.interpolate(scores, size, mode="bilinear", align_corners=False)
