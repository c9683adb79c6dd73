"""Requirements of the analysis on an encoder: a sequence of blocks over the same tokens, with patches in a square grid."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from analysis.attention import through_blocks
from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder, has_class_token
from lutbench.models.meta import shapes_only
from lutbench.recipes.analysis import AnalysisRecipe
from lutbench.recipes.base import EncoderRecipe
from lutbench.run import Run, row_named


class TokenGrid(NamedTuple):
    """The tokens of an encoder: ``prefix`` (class token, registers), then the patches, row by row."""

    side: int
    """Patches on a side."""
    patch_size: int
    """Pixels on a side of a patch."""
    prefix: int
    class_token: bool
    """Whether the first token is a class token."""
    width: int
    depth: int
    """Number of blocks."""


def token_grid(encoder: nn.Module) -> TokenGrid:
    """Return the tokens that an encoder says that it has.

    Raises:
        UserError: if it has no row of blocks over the patches of a square grid, as hierarchical and convolutional networks.
    """
    model: Any = encoder
    blocks, embedding = getattr(model, "blocks", None), getattr(model, "patch_embed", None)
    prefix, grid = getattr(model, "num_prefix_tokens", None), getattr(embedding, "grid_size", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not isinstance(prefix, int) or not grid:
        raise _refused(model)
    return TokenGrid(
        grid[0], embedding.patch_size[0], prefix, has_class_token(model), model.embed_dim, len(blocks)  # type: ignore[union-attr]
    )  # fmt: skip


@lru_cache
def grid_of(architecture: EncoderRecipe, side: int) -> TokenGrid:
    """Return the tokens of an architecture for images (3, side, side), checked by a pass without memory.

    Raises:
        UserError: as :func:`token_grid`; also if a block has other tokens than these.
    """
    with shapes_only():
        encoder = create_encoder(architecture, side).eval()
        found = token_grid(encoder)
        tokens = through_blocks(encoder, torch.zeros(2, 3, side, side)).tokens
    if any(of.shape != (2, found.prefix + found.side**2, found.width) for of in tokens):
        raise _refused(encoder)
    return found


def run_grid(run: Run[AnalysisRecipe]) -> TokenGrid:
    """Return the tokens of a run's encoder. Raises UserError, with the table's name, if it has none that can be analysed."""
    with row_named(run):
        return grid_of(run.recipe.encoder.architecture, run.recipe.side)


def _refused(encoder: nn.Module) -> UserError:
    return UserError(
        f"an analysis needs a sequence of blocks over the tokens of a square patch grid, as in a Vision Transformer, but timm's "
        f"{type(encoder).__name__} has no such blocks. Remove the method from methods, or choose another encoder."
    )
