"""FLOP per image of segmentation: the encoder, and UPerNet (from the shapes of its convolutions) or a dense probe.

UPerNet is counted by hand so that a plan needs no MMSegmentation; a test compares it with MMSegmentation's own modules.
"""

from collections.abc import Iterator
from math import ceil

from downstream.segmentation.pyramid import check_segmentation
from downstream.segmentation.tokens import grid_of
from lutbench.plan.compute import STEP, Counted, transformer
from lutbench.plan.cost import ASPECT, Cost
from lutbench.recipes.dense import DenseKnnRecipe, DenseLinearRecipe
from lutbench.recipes.segmentation import SegmentationRecipe, WindowsRecipe
from lutbench.run import Run

POOLED = (1, 2, 3, 6)
"""Sides of the pyramid pooling's maps (MMSegmentation's config)."""


def cost(run: Run[SegmentationRecipe], classes: int) -> Cost:
    """Return what it takes to train on a crop and to evaluate an image by sliding windows."""
    recipe, pyramid = run.recipe, check_segmentation(run.recipe)
    encoder = transformer(recipe.encoder.architecture, recipe.crop)
    channels = recipe.channels or pyramid.channels
    if pyramid.hierarchical:
        head, side = heads(pyramid.widths, pyramid.sides, channels, recipe.auxiliary_channels, classes)
    else:
        head, side = upernet(pyramid.widths[0], pyramid.sides[0], channels, recipe.auxiliary_channels, classes)
    values = encoder.values + head.values + side.values
    evaluate = (encoder.flop + head.flop) * windows(recipe)
    return Cost(STEP * (encoder.flop + head.flop + side.flop), evaluate, 3 * values, values)


def dense_linear(run: Run[DenseLinearRecipe], classes: int) -> Cost:
    """Return what it takes to encode a crop and to train the layer on its tokens; the layer is kept, and Adam's two moments of it."""
    grid, encoder = grid_of(run.recipe), transformer(run.recipe.encoder.architecture, run.recipe.crop)
    layer, values = 2 * grid.width * classes * grid.side**2, (grid.width + 1) * classes + 4 * grid.width
    return Cost(encoder.flop + STEP * layer, (encoder.flop + layer) * windows(run.recipe), 3 * values, values)


def dense_knn(run: Run[DenseKnnRecipe], classes: int) -> Cost:
    """Return what it takes to encode the windows of an image, and to compare their patches with a full bank; nothing is kept."""
    grid, encoder = grid_of(run.recipe), transformer(run.recipe.encoder.architecture, run.recipe.crop)
    compared = 2 * grid.width * run.recipe.bank * grid.side**2
    return Cost(encoder.flop * windows(run.recipe), (encoder.flop + compared) * windows(run.recipe))


def windows(recipe: WindowsRecipe) -> int:
    """Return how many windows slide over a validation image of aspect :data:`ASPECT`."""
    short = min(recipe.scale[1], recipe.scale[0] / ASPECT)
    along = [ceil(max(0, round(side) - recipe.crop) / recipe.stride) + 1 for side in (short, short * ASPECT)]
    return along[0] * along[1]


def upernet(width: int, grid: int, channels: int, auxiliary: int, classes: int) -> tuple[Counted, Counted]:
    """Return what neck and head, and apart the auxiliary head, take on an encoder whose map of an image is ``grid`` x ``grid``.

    ``width`` is the encoder's. Evaluation leaves the auxiliary head out.
    """
    head, side = heads([width] * 4, [4 * grid, 2 * grid, grid, grid // 2], channels, auxiliary, classes)
    return _together([head, *_neck(width, grid)]), side


def heads(widths: list[int], sides: list[int], channels: int, auxiliary: int, classes: int) -> tuple[Counted, Counted]:
    """Return what head and auxiliary head take on four maps (C, S, S) of ``widths`` C and ``sides`` S, the finest first."""
    side = [
        _convolution(widths[2], auxiliary, 3, sides[2] ** 2, 4 * auxiliary),
        _convolution(auxiliary, classes, 1, sides[2] ** 2, classes),
    ]
    return _together(list(_head(widths, sides, channels, classes))), _together(side)


def _together(layers: list[Counted]) -> Counted:
    return Counted(sum(layer.flop for layer in layers), sum(layer.values for layer in layers))


def _convolution(inputs: int, outputs: int, kernel: int, positions: int, extra: int) -> Counted:
    """Return what one convolution takes, with a kernel of ``kernel`` x ``kernel``.

    ``positions`` are those that it is applied at: of the output, or of the input for the two that enlarge by two.
    ``extra`` is its bias, and what a batch norm behind it keeps for every output: weight, bias, running mean and variance.
    """
    weights = inputs * outputs * kernel**2
    return Counted(2 * weights * positions, weights + extra)


def _neck(width: int, grid: int) -> Iterator[Counted]:
    # Feature2Pyramid enlarges by four, two, one and a half; the last two without weights.
    yield _convolution(width, width, 2, grid**2, width + 4 * width)
    yield _convolution(width, width, 2, 4 * grid**2, width)
    yield _convolution(width, width, 2, grid**2, width)


def _head(widths: list[int], sides: list[int], channels: int, classes: int) -> Iterator[Counted]:
    fine, coarse = [side**2 for side in sides[:-1]], sides[-1] ** 2
    # a lateral convolution and one of the pyramid for each
    for width, positions in zip(widths[:-1], fine, strict=True):
        yield _convolution(width, channels, 1, positions, 4 * channels)
        yield _convolution(channels, channels, 3, positions, 4 * channels)
    for pooled in POOLED:
        yield _convolution(widths[-1], channels, 1, pooled**2, 4 * channels)
    yield _convolution(widths[-1] + len(POOLED) * channels, channels, 3, coarse, 4 * channels)
    yield _convolution(4 * channels, channels, 3, fine[0], 4 * channels)
    yield _convolution(channels, classes, 1, fine[0], classes)
