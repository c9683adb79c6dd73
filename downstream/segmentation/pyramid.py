"""The four feature maps for UPerNet: outputs of four blocks, rescaled by a neck, or of the stages with strides 4, 8, 16 and 32."""

from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch

from lutbench.errors import UserError, listed
from lutbench.models.encoders import create_encoder, geometry_of, is_plain, timm_arguments
from lutbench.models.meta import shapes_only
from lutbench.models.timm_models import takes
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.segmentation import SegmentationRecipe

LEVELS = 4
"""Levels of the pyramid: the maps of four blocks, enlarged 4, 2, 1 and 0.5 times, or those of four stages."""

STRIDES = (4, 8, 16, 32)
"""Pixels between positions of the maps of a hierarchical encoder."""

CHANNELS = 512
"""Channels of UPerHead on a hierarchical encoder (MMSegmentation's configs for Swin, ConvNeXt and ResNet)."""


class Pyramid(NamedTuple):
    """The maps of an encoder for crops of one size."""

    indices: list[int]
    """Which blocks or stages, from 0."""
    widths: list[int]
    """Channels of each map."""
    sides: list[int]
    """Positions on a side of each map, before the neck."""
    depth: int
    """Number of blocks; of stages for a hierarchical encoder."""
    hierarchical: bool

    @property
    def channels(self) -> int:
        """Channels of UPerHead where the recipe does not say."""
        return CHANNELS if self.hierarchical else self.widths[-1]


def check_segmentation(recipe: SegmentationRecipe, processes: int = 1) -> Pyramid:
    """Return the maps of the recipe's encoder, if everything fits together.

    Raises:
        UserError: if the crop is not a whole number of patches, a block is deeper than the encoder, the encoder has no such maps, or
            the batch does not divide over the processes.
    """
    found = _pyramid_of(recipe.encoder.architecture, recipe.crop, tuple(recipe.blocks) if recipe.blocks else None)
    if recipe.batch % processes:
        raise UserError(
            f"batch = {recipe.batch} is not divisible by {processes} processes: set it to a "
            f"multiple of {processes}, or start another number of processes."
        )
    return found


@lru_cache
def _pyramid_of(architecture: EncoderRecipe, crop: int, blocks: tuple[int, ...] | None) -> Pyramid:
    if is_plain(architecture):
        geometry = geometry_of(architecture)
        if crop % geometry.patch_size:
            raise UserError(
                f"crop = {crop} is not a multiple of the patch size {geometry.patch_size}: "
                f"use {max(1, round(crop / geometry.patch_size)) * geometry.patch_size}."
            )
        indices = _checked_blocks(blocks, geometry.depth)
        return Pyramid(
            indices,
            [geometry.width] * LEVELS,
            [crop // geometry.patch_size] * LEVELS,
            geometry.depth,
            hierarchical=False,
        )
    with shapes_only():
        levels: Any = create_encoder(architecture, crop).feature_info
    strides = [level["reduction"] for level in levels]
    if len(set(strides)) == 1:
        indices = _checked_blocks(blocks, len(strides))
    elif set(STRIDES) <= set(strides):
        if blocks is not None:
            raise UserError(
                f"blocks = {list(blocks)}: {architecture.model} is hierarchical, so UPerNet uses the maps of its stages at strides "
                f"{listed(map(str, STRIDES))}. Remove blocks."
            )
        indices = [strides.index(stride) for stride in STRIDES]
    else:
        raise _no_maps(architecture, f"maps at strides {listed(map(str, strides), 8)}")
    try:
        with shapes_only(), torch.no_grad():
            maps = maps_of(architecture, crop, indices).eval()(torch.empty(2, 3, crop, crop))
    except Exception as error:  # whatever the model's own code trips over
        raise _no_maps(architecture, f"none ({type(error).__name__}: {error})") from error
    widths, sides = [one.shape[1] for one in maps], [one.shape[-1] for one in maps]
    if len(maps) != LEVELS or any(one.ndim != 4 for one in maps) or sides != sorted(sides, reverse=True):
        raise _no_maps(architecture, f"maps of shapes {listed([str(tuple(one.shape[1:])) for one in maps])}")
    return Pyramid(indices, widths, sides, len(strides), hierarchical=len(set(strides)) > 1)


def maps_of(architecture: EncoderRecipe, crop: int, indices: list[int], drop_path: float = 0.0) -> Any:
    """Return timm's model that gives the maps of blocks or stages: images (B, 3, S, S) in, a list of (B, C, H, W) out.

    What comes behind the last of them, such as a norm, is left out.
    """
    return timm.create_model(
        architecture.model, **maps_arguments(architecture, crop, drop_path), out_indices=list(indices)
    )


def maps_arguments(architecture: EncoderRecipe, crop: int, drop_path: float) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model(architecture.model, out_indices=..., ...)`` in :func:`maps_of`."""
    paths = {"drop_path_rate": drop_path} if drop_path or takes(architecture.model, "drop_path_rate") else {}
    return {**timm_arguments(architecture, crop), "features_only": True, "feature_cls": "getter", **paths}


def blocks_of(blocks: tuple[int, ...] | list[int] | None, depth: int) -> list[int]:
    """Return the blocks, from 0, that feed the pyramid, of an encoder with ``depth`` blocks: those given, or its own choice."""
    if blocks is not None:
        return list(blocks)
    if depth < 6:  # too few for the shares
        return list(range(max(0, depth - LEVELS), max(depth, LEVELS)))
    return [round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]


def _checked_blocks(blocks: tuple[int, ...] | None, depth: int) -> list[int]:
    indices = blocks_of(blocks, depth)
    if indices[-1] >= depth:
        raise UserError(
            f"The pyramid needs the outputs of four blocks, but the encoder has {depth}: "
            + ("change blocks." if depth >= LEVELS else "use an encoder with at least four blocks.")
        )
    return indices


def _no_maps(architecture: EncoderRecipe, found: str) -> UserError:
    return UserError(
        f"model = {architecture.model!r}: UPerNet needs four feature maps, of blocks on the same grid or at strides "
        f"{listed(map(str, STRIDES))}, but timm returns {found}. Remove the method from methods of this task, or choose another encoder."
    )
