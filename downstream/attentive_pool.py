"""The trainable part of an attentive probe: a query that attends to the patch tokens of a frozen encoder, and a linear layer."""

from collections import OrderedDict
from functools import partial

from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.tokens import patch_tokens
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.train.randomness import RngStream, seeded

ATTENTIVE = 103
"""The last number of the key under which the probe's weights are drawn."""

STD = 0.02
"""Standard deviation of the initial weights, normal, truncated (V-JEPA, as ViTs)."""


def attentive_head(width: int, classes: int, heads: int, mlp_ratio: float, seed: int) -> nn.Sequential:
    """Return the probe from tokens (B, N, D) to scores (B, C): V-JEPA's block (arXiv 2404.08471, section 4) as timm has it.

    Tokens pass a LayerNorm; one learned query attends to them with linear keys and values, in so many heads; what it finds passes a
    linear layer and a residual MLP behind a second LayerNorm, and the classifier. V-JEPA adds the query to what it finds; that is the
    same for all images, and the bias of the linear layer stands for it.
    """
    norm = partial(nn.LayerNorm, eps=1e-6)
    with seeded(RngStream.WEIGHTS, seed, ATTENTIVE):
        pool = AttentionPoolLatent(width, num_heads=heads, mlp_ratio=mlp_ratio, norm_layer=norm)  # type: ignore[arg-type]
        trunc_normal_(pool.latent, std=STD)
        head = nn.Sequential(OrderedDict(norm=norm(width), pool=pool, classifier=nn.Linear(width, classes)))
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=STD)
                nn.init.zeros_(layer.bias)
    return head


def heads_of(recipe: AttentiveRecipe, width: int) -> int:
    """Return how many heads the attention has: if none are given one for 64 features, or as many as divide the width.

    Raises:
        UserError: if those that are given do not.
    """
    own = next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)
    if recipe.heads and width % recipe.heads:
        raise UserError(
            f"heads = {recipe.heads} must divide the width {width} of a token. Remove heads (the default is {own}), or change it."
        )
    return recipe.heads or own


class AttentiveClassifier(nn.Module):
    """A frozen encoder with the probe behind it: images in, scores out; its last layer is timm's ``get_classifier()``."""

    def __init__(self, encoder: nn.Module, head: nn.Sequential) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (B, C) of ``images`` (B, 3, S, S)."""
        scores: Tensor = self.head(patch_tokens(self.encoder, images))
        return scores

    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        classifier: nn.Module = self.head.classifier  # type: ignore[assignment]
        return classifier
