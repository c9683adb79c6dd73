"""The patch tokens of an encoder, before pooling."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder
from lutbench.models.meta import shapes_only
from lutbench.recipes.base import EncoderRecipe


def patch_tokens(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return the patch tokens (B, N, D), float32, of ``images`` (B, 3, S, S), without class token and registers.

    Raises:
        UserError: if the model gives no tokens with a known number of others before them, as a convolutional or hierarchical one.
    """
    model: Any = encoder
    found: Tensor = model.forward_features(images)
    prefix = getattr(model, "num_prefix_tokens", None)
    if not isinstance(prefix, int) or found.ndim != 3:
        raise UserError(
            f"expected patch tokens, which the attentive probe needs, but timm's {type(model).__name__} returns features of shape "
            f"{tuple(found.shape[1:])}. Choose a Vision Transformer, or another probe (linear, knn)."
        )
    return found[:, prefix:].float()


@lru_cache
def token_shape(recipe: EncoderRecipe, side: int) -> tuple[int, int]:
    """Return how many patch tokens an encoder gives of an image, and their width (N, D), without computing any.

    Raises:
        UserError: as :func:`patch_tokens`.
    """
    with shapes_only(), torch.no_grad():
        tokens = patch_tokens(create_encoder(recipe, side).eval(), torch.empty(1, 3, side, side))
    return tokens.shape[1], tokens.shape[2]
