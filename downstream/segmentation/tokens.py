"""The patch tokens of an encoder on their grid, for dense probes."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.blocks import block_numbers
from lutbench.models.encoders import create_encoder, timm_arguments
from lutbench.models.meta import shapes_only
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.dense import DenseRecipe


class Grid(NamedTuple):
    """The patch tokens of one window."""

    width: int
    """Numbers in a token, of all blocks together."""
    side: int
    """Patches on a side."""
    blocks: tuple[int, ...]
    """The numbers of the blocks, 1 being the first."""


def grid_of(recipe: DenseRecipe) -> Grid:
    """Return the patch tokens that a recipe takes of its encoder.

    Raises:
        UserError: if it has no tokens on one grid of patches, or no such block, or cannot be made for the crop.
    """
    return _grid(recipe.encoder.architecture, recipe.crop, tuple(recipe.blocks) if recipe.blocks else None)


@lru_cache
def _grid(architecture: EncoderRecipe, crop: int, blocks: tuple[int, ...] | None) -> Grid:
    try:
        timm_arguments(architecture, crop)
    except UserError as error:  # of a task that has no image_size, but windows of this side
        raise UserError(str(error).replace("image_size =", "crop =", 1)) from error
    with shapes_only(), torch.no_grad():
        encoder: Any = create_encoder(architecture, crop).eval()
        depth = len(getattr(encoder, "blocks", ()))
        if not (
            depth
            and hasattr(encoder, "forward_intermediates")
            and isinstance(getattr(encoder, "num_prefix_tokens", None), int)
        ):
            raise _no_tokens(architecture, f"timm's {type(encoder).__name__} gives none")
        chosen = block_numbers(encoder, blocks or (-1,))
        try:
            tokens = tokens_of(encoder, torch.empty(2, 3, crop, crop), chosen)
        except Exception as error:  # whatever the model's own code trips over
            raise _no_tokens(architecture, f"timm's gives none ({type(error).__name__}: {error})") from error
    return Grid(tokens.shape[1], tokens.shape[2], chosen)


def _no_tokens(architecture: EncoderRecipe, found: str) -> UserError:
    return UserError(
        f"model = {architecture.model!r}: a dense probe needs patch tokens on one grid, as in Vision Transformers, but {found}. "
        "Remove the method from methods of this task, or choose another encoder."
    )


def tokens_of(encoder: Any, pixels: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Return the patch tokens (B, D, g, g), float32, of ``blocks`` one behind the other, of normalised ``pixels`` (B, 3, S, S).

    Each is behind the encoder's last norm, also where that belongs behind the mean over patches.
    """
    order = sorted(blocks)
    found = encoder.forward_intermediates(
        pixels, indices=[number - 1 for number in order], norm=True, output_fmt="NCHW", intermediates_only=True
    )
    maps = [found[order.index(number)] for number in blocks]
    norm = getattr(encoder, "fc_norm", None)
    if isinstance(norm, nn.LayerNorm):
        maps = [norm(one.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for one in maps]
    return torch.cat(list(maps), 1).float().contiguous()  # BatchNorm sums in the order of the memory
