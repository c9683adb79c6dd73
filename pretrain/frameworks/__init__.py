"""Masked image modelling, one framework per file; LUT's second loss goes around any of them.

A new framework is a file with what :class:`pretrain.frameworks.interface.Framework` asks for, and a line in
:data:`FRAMEWORKS`.
"""

from collections.abc import Callable

from timm.models import VisionTransformer

from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.frameworks.interface import Framework
from pretrain.frameworks.mae import build_mae
from pretrain.frameworks.simmim import build_simmim

FRAMEWORKS: dict[str, Callable[[PretrainRecipe, int], tuple[VisionTransformer, Framework]]] = {
    "mae": build_mae,
    "simmim": build_simmim,
}
"""What builds each framework, by its name in a recipe."""


def build_framework(recipe: PretrainRecipe, seed: int) -> tuple[VisionTransformer, Framework]:
    """Return the encoder and the framework of a recipe, with initial weights that depend on ``seed`` alone.

    Raises:
        UserError: if the framework cannot train that encoder, or the decoder's sizes do not go together.
    """
    return FRAMEWORKS[recipe.framework](recipe, seed)
