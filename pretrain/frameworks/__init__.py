"""Masked image modelling, one framework per file; LUT's second loss goes around any of them.

A new framework is a file with what :class:`pretrain.frameworks.interface.Framework` asks for, and a line in
:func:`build_framework`.
"""

from timm.models import VisionTransformer

from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.frameworks.interface import Framework
from pretrain.frameworks.mae import build_mae


def build_framework(recipe: PretrainRecipe, seed: int) -> tuple[VisionTransformer, Framework]:
    """Return the encoder and the framework of a recipe, with initial weights that depend on ``seed`` alone.

    Raises:
        UserError: if the framework cannot train that encoder, or the decoder's sizes do not go together.
    """
    return build_mae(recipe, seed)
