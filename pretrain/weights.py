"""Initial weights (MAE, section A.1), drawn apart for each component so that leaving one out changes no other."""

from enum import IntEnum

import torch
from timm.models import VisionTransformer
from torch import nn

from pretrain.autoencoder import Decoder


class Part(IntEnum):
    """The last number of the key under which a component's weights are drawn."""

    ENCODER = 0
    DECODER = 1
    PROJECTOR = 2
    PREDICTOR = 3


@torch.no_grad()
def initialise(component: nn.Module) -> None:
    """Xavier uniform for linear layers and the flattened patch embedding; N(0, 0.02) for class and mask token.

    Biases are zero (our choice for the patch embedding's; the release leaves torch's default there). Normalisation
    layers are left as torch makes them: weight 1, bias 0.
    """
    for module in component.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, VisionTransformer):
            projection = module.patch_embed.proj
            nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
            if module.cls_token is not None:
                nn.init.normal_(module.cls_token, std=0.02)
        elif isinstance(module, Decoder):
            nn.init.normal_(module.mask_token, std=0.02)
