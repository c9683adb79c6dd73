"""What a run computes for one image and what it keeps: counted on modules without memory, nothing is trained."""

from collections.abc import Callable
from functools import cache
from math import ceil
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lutbench import kinds
from lutbench.models.encoders import create_encoder, geometry_of
from lutbench.plan.upernet import upernet
from lutbench.recipes import (
    ClassificationRecipe,
    EncoderRecipe,
    FinetuneRecipe,
    LinearRecipe,
    PretrainRecipe,
    SegmentationRecipe,
)
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.robustness import RobustnessRecipe

STEP = 3
"""Forward and backward pass over the forward pass alone: the backward multiplies twice where the forward does once."""

COUNTED = 2
"""Images in the batch that is counted: a batch norm takes no single one."""

ASPECT = 4 / 3
"""Long side over short side of an image whose size is not known (our choice: the photographs' of most cameras)."""

MULTI_SCALE = 12
"""Times an evaluation with ``tta`` looks at each image: six scales, each also flipped."""

SIDE = 224
"""Of the input of a timm model whose configuration is not asked: most of them."""


class Demand(NamedTuple):
    """What one run asks of the machine."""

    train: float
    """FLOP for an image that is trained on, or encoded for a probe."""
    evaluate: float
    """FLOP for an image that is evaluated."""
    checkpoint: int
    """Numbers in a checkpoint: weights, the optimiser's two moments of what is trained, and the teacher."""
    exported: int
    """Numbers in the weights that stay."""


def demand_of(recipe: RunRecipe, classes: int, measured: FinetuneRecipe | None = None) -> Demand:
    """Of a run on a set of so many classes; ``measured`` made the classifier of a robustness run, unless timm did.

    The layer of a probe, the comparison of neighbours and everything but matrix products and convolutions are left out.

    Raises:
        UserError: if an encoder cannot be built.
    """
    if isinstance(recipe, PretrainRecipe):
        demand: Demand = kinds.load("pretrain.cost:cost_of")(recipe.model_dump_json())
        return demand
    if isinstance(recipe, RobustnessRecipe):
        if measured is None:
            return Demand(0, _of_timm(recipe.classifier.model, recipe.image_size or SIDE), 0, 0)
        side = recipe.image_size or measured.side
        return Demand(0, _transformer(measured.encoder.architecture, side, classes).flop, 0, 0)
    if isinstance(recipe, SegmentationRecipe):
        return _segmentation(recipe, classes)
    assert isinstance(recipe, ClassificationRecipe)
    architecture = recipe.encoder.architecture
    if isinstance(recipe, FinetuneRecipe):
        flop, values = _transformer(architecture, recipe.side, classes)
        return Demand(STEP * flop, flop, 3 * values, values)
    flop = _transformer(architecture, recipe.side, 0).flop
    if not isinstance(recipe, LinearRecipe):
        return Demand(flop, flop, 0, 0)
    layer = (geometry_of(architecture).width + 1) * classes
    return Demand(flop, flop, 2 * layer, layer)  # LARS keeps one moment


def counted(call: Callable[[], object]) -> int:
    """FLOP of a call on meta tensors: of matrix products, convolutions and attention, two for each multiplication."""
    # Attention as plain products: fused kernels have no formula on every device, and the same FLOP.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


class _Model(NamedTuple):
    flop: float
    """Forward pass of one image."""
    values: int
    """Numbers in its weights."""


def _transformer(architecture: EncoderRecipe, side: int, classes: int) -> _Model:
    """An encoder and, for ``classes`` above 0, a linear layer on its mean."""
    body, width = _encoder(architecture, side), geometry_of(architecture).width
    return _Model(body.flop + 2 * width * classes, body.values + (width + 1) * classes)


@cache
def _encoder(architecture: EncoderRecipe, side: int) -> _Model:
    with torch.device("meta"):
        model = create_encoder(architecture, side).eval()
        return _Model(_flop_of(model, side), _values(model))


@cache
def _of_timm(name: str, side: int) -> float:
    with torch.device("meta"):
        sized = timm.get_pretrained_cfg(name)
        fixed: dict[str, Any] = {"img_size": side} if sized is not None and sized.fixed_input_size else {}
        return _flop_of(timm.create_model(name, **fixed).eval(), side)


def _flop_of(model: nn.Module, side: int) -> float:
    pixels = torch.empty(COUNTED, 3, side, side)
    return counted(lambda: model(pixels)) / COUNTED


def _segmentation(recipe: SegmentationRecipe, classes: int) -> Demand:
    architecture = recipe.encoder.architecture
    geometry = geometry_of(architecture)
    flop, values = _transformer(architecture, recipe.crop, 0)
    grid = recipe.crop // geometry.patch_size
    head = upernet(geometry.width, grid, recipe.channels or geometry.width, recipe.auxiliary_channels, classes)
    values += head.values
    return Demand(STEP * (flop + head.train), (flop + head.evaluate) * windows(recipe), 3 * values, values)


def windows(recipe: SegmentationRecipe) -> int:
    """Windows that slide over a validation image of aspect :data:`ASPECT`."""
    short = min(recipe.scale[1], recipe.scale[0] / ASPECT)
    along = [ceil(max(0, round(side) - recipe.crop) / recipe.stride) + 1 for side in (short, short * ASPECT)]
    return along[0] * along[1]


def _values(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())
