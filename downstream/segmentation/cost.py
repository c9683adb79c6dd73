"""What segmentation computes for one image: a Vision Transformer, and UPerNet from the shapes of its convolutions.

UPerNet is counted by hand so that a plan needs no MMSegmentation; a test compares it with MMSegmentation's own modules.
"""

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from lutbench.models.encoders import geometry_of
from lutbench.plan.compute import ASPECT, STEP, Cost, transformer
from lutbench.recipes import SegmentationRecipe
from lutbench.run import Run

POOLED = (1, 2, 3, 6)
"""Sides of the pyramid pooling's maps (MMSegmentation's config)."""


def cost(run: Run[SegmentationRecipe], classes: int) -> Cost:
    """Return what it takes to train on a crop and to evaluate an image by sliding windows."""
    recipe, geometry = run.recipe, geometry_of(run.recipe.encoder.architecture)
    encoder = transformer(recipe.encoder.architecture, recipe.crop)
    grid = recipe.crop // geometry.patch_size
    head = upernet(geometry.width, grid, recipe.channels or geometry.width, recipe.auxiliary_channels, classes)
    values = encoder.values + head.values
    evaluate = (encoder.flop + head.evaluate) * windows(recipe)
    return Cost(STEP * (encoder.flop + head.train), evaluate, 3 * values, values)


def windows(recipe: SegmentationRecipe) -> int:
    """Return how many windows slide over a validation image of aspect :data:`ASPECT`."""
    short = min(recipe.scale[1], recipe.scale[0] / ASPECT)
    along = [ceil(max(0, round(side) - recipe.crop) / recipe.stride) + 1 for side in (short, short * ASPECT)]
    return along[0] * along[1]


class Convolution(NamedTuple):
    """One convolution of a feature map."""

    inputs: int
    outputs: int
    kernel: int
    """Side of the kernel."""
    positions: int
    """Positions that it is applied at: of the output, or of the input for the two that enlarge by two."""
    extra: int
    """Its bias, and what a batch norm behind it keeps for every output: weight, bias, running mean and variance."""

    @property
    def flop(self) -> int:
        """FLOP for one image, a multiplication and an addition counted as two."""
        return 2 * self.weights * self.positions

    @property
    def weights(self) -> int:
        """Numbers in the kernel."""
        return self.inputs * self.outputs * self.kernel**2


class Upernet(NamedTuple):
    """What neck, head and auxiliary head take."""

    train: int
    """FLOP of the forward pass of one image."""
    evaluate: int
    """The same without the auxiliary head, which evaluation leaves out."""
    values: int
    """Numbers in the weights, running statistics included."""


def upernet(width: int, grid: int, channels: int, auxiliary: int, classes: int) -> Upernet:
    """Return what UPerNet takes on an encoder of ``width`` whose map of an image is ``grid`` x ``grid``."""
    main = list(_pyramid(width, grid, channels, classes))
    side = list(_auxiliary(width, grid, auxiliary, classes))
    evaluate = sum(one.flop for one in main)
    values = sum(one.weights + one.extra for one in (*main, *side))
    return Upernet(evaluate + sum(one.flop for one in side), evaluate, values)


def _pyramid(width: int, grid: int, channels: int, classes: int) -> Iterator[Convolution]:
    fine, coarse = [(4 * grid) ** 2, (2 * grid) ** 2, grid**2], (grid // 2) ** 2
    # Feature2Pyramid enlarges by four, two, one and a half; the last two without weights.
    yield Convolution(width, width, 2, grid**2, width + 4 * width)
    yield Convolution(width, width, 2, 4 * grid**2, width)
    yield Convolution(width, width, 2, grid**2, width)
    for positions in fine:  # UPerHead: a lateral convolution and one of the pyramid for each level but the last
        yield Convolution(width, channels, 1, positions, 4 * channels)
        yield Convolution(channels, channels, 3, positions, 4 * channels)
    for pooled in POOLED:
        yield Convolution(width, channels, 1, pooled**2, 4 * channels)
    yield Convolution(width + len(POOLED) * channels, channels, 3, coarse, 4 * channels)
    yield Convolution(4 * channels, channels, 3, fine[0], 4 * channels)
    yield Convolution(channels, classes, 1, fine[0], classes)


def _auxiliary(width: int, grid: int, channels: int, classes: int) -> Iterator[Convolution]:
    yield Convolution(width, channels, 3, grid**2, 4 * channels)
    yield Convolution(channels, classes, 1, grid**2, classes)
