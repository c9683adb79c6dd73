"""The classifier that is fine-tuned: timm's own, so that timm loads what comes out of it."""

from typing import Any

from timm.layers.weight_init import trunc_normal_
from timm.models import VisionTransformer
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from lutbench.models.encoders import create_encoder
from lutbench.models.pretrained import fit
from lutbench.recipes import FinetuneRecipe
from lutbench.train.randomness import RngStream, seeded

HEAD = 101
"""The last number of the key under which a classifier's own weights are drawn."""

OWN = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
"""What of a classifier does not come from the encoder."""


def build_classifier(encoder: VisionTransformer, recipe: FinetuneRecipe, classes: int, seed: int) -> VisionTransformer:
    """Mean over patch tokens, a new LayerNorm, a linear head with N(0, head_std) truncated at 2 (MAE, section A.1).

    The LayerNorm behind the mean replaces the encoder's last one, which is dropped (as MAE does). Position
    embeddings are trained.
    """
    with seeded(RngStream.WEIGHTS, seed, HEAD):
        classifier = create_encoder(
            recipe.encoder.architecture, recipe.image_size, recipe.drop_path, classes=classes, pooled_norm=True
        )
        assert isinstance(classifier.head, nn.Linear)
        trunc_normal_(classifier.head.weight, std=recipe.head_std)
    kept = {name: t for name, t in encoder.state_dict().items() if not name.startswith(("norm.", "fc_norm."))}
    fit(classifier, kept, "The encoder", fresh=OWN)
    return classifier


def layer_decay_groups(classifier: VisionTransformer, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Groups for the optimiser, whose ``lr_scale`` is layer_decay^(D + 1 - depth) for a ViT of D blocks.

    Embeddings have depth 0, block i depth i + 1, norm and head depth D + 1. No weight decay on 1-D parameters, class
    token and position embedding (as MAE does).
    """
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        classifier,
        recipe.weight_decay,
        no_weight_decay_list=classifier.no_weight_decay(),
        layer_decay=recipe.layer_decay,
    )
    return groups
