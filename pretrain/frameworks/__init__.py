"""Masked image modelling, one framework per file; LUT's second loss goes around any of them.

A new framework is a file with an implementation of :class:`pretrain.frameworks.interface.Framework` and a function that builds it,
and a line in :data:`lutbench.kinds.FRAMEWORKS`.
"""

from pkgutil import resolve_name

from timm.models import VisionTransformer

from lutbench.kinds import FRAMEWORKS
from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.frameworks.interface import Framework


def build_framework(recipe: PretrainRecipe, seed: int) -> tuple[VisionTransformer, Framework]:
    """Return the encoder and the framework of a recipe, with initial weights that depend on ``seed`` alone.

    Raises:
        UserError: if the framework cannot train that encoder, or the decoder's sizes do not go together.
    """
    built: tuple[VisionTransformer, Framework] = resolve_name(FRAMEWORKS[recipe.framework])(recipe, seed)
    return built
