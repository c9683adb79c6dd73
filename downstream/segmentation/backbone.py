"""An encoder's weights under the names of MMSegmentation's MAE backbone, every key accounted for."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from mmengine.model import BaseModule
from mmseg.models.backbones import MAE
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder, geometry_of, is_plain
from lutbench.models.fitting import misfits
from lutbench.recipes.base import EncoderRecipe
from lutbench.train.randomness import RngStream, seeded

RENAMED = (
    (r"cls_token", "cls_token"),
    (r"pos_embed", "pos_embed"),
    (r"patch_embed\.proj\.(weight|bias)", r"patch_embed.projection.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"layers.\1.ln\2.\3"),
    (r"blocks\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)", r"layers.\1.attn.\2.\3"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", r"layers.\1.ffn.layers.0.0.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", r"layers.\1.ffn.layers.1.\2"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"layers.\1.gamma_\2"),
)
"""timm's names, and what the backbone calls them."""

LEFT_OUT = re.compile(r"(norm|fc_norm|head)\..*")
"""The last norm, which the backbone does not apply to what it hands to the pyramid, and heads."""

OWN = re.compile(r"layers\.\d+\.(attn\.relative_position_(bias_table|index)|gamma_[12])")
"""Parameters that the backbone has and an encoder may not have: relative position biases, zero at first, and LayerScale."""


ALIKE = 1e-4
"""Of the largest value, by how much the maps of the two may differ by rounding."""


@lru_cache
def is_mae(architecture: EncoderRecipe, crop: int) -> bool:
    """Return whether MMSegmentation's MAE backbone computes what an encoder does, by one block of either with weights far from special."""
    if not is_plain(architecture):
        return False
    side = min(crop, 4 * geometry_of(architecture).patch_size)
    with seeded(RngStream.WEIGHTS, 0), torch.no_grad():
        encoder: Any = create_encoder(architecture.model_copy(update={"depth": 1}), side).eval()
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=0.2)
        backbone = MAE(**mae_settings(architecture, side, [0]) | {"num_layers": 1})
        backbone.eval()
        try:
            load_backbone(backbone, encoder)
        except UserError:
            return False
        images = torch.randn(1, 3, side, side)
        expected = encoder.forward_intermediates(images, norm=False, intermediates_only=True)[0]
        difference = (backbone(images)[0] - expected).abs().max()
        return bool(difference <= ALIKE * expected.abs().max())


def mae_settings(
    architecture: EncoderRecipe, crop: int, indices: list[int], drop_path: float = 0.0, layer_scale: float = 1.0
) -> dict[str, Any]:
    """Return the arguments of MMSegmentation's MAE backbone for a plain ViT."""
    geometry = geometry_of(architecture)
    return {
        "img_size": (crop, crop),
        "patch_size": geometry.patch_size,
        "embed_dims": geometry.width,
        "num_layers": geometry.depth,
        "num_heads": geometry.heads,
        "mlp_ratio": 4,
        "out_indices": indices,
        "drop_path_rate": drop_path,
        "norm_cfg": {"type": "LN", "eps": 1e-6},
        "init_values": layer_scale,
    }


def load_backbone(backbone: BaseModule, encoder: VisionTransformer) -> None:
    """Give MMSegmentation's MAE ``backbone`` the weights of ``encoder``, whose input has the backbone's size.

    Relative position biases become zero, so the backbone computes what the encoder does. LayerScale, where the encoder
    has none, keeps the value of the recipe.

    Raises:
        UserError: listing what has no place on either side, or another shape.
    """
    expected = backbone.state_dict()
    given = converted(encoder.state_dict())
    for name, tensor in expected.items():
        if OWN.fullmatch(name) and name not in given:
            given[name] = torch.zeros_like(tensor) if name.endswith("bias_table") else tensor
    if problems := misfits(expected, given, "backbone"):
        raise UserError(
            f"The encoder does not fit MMSegmentation's MAE backbone. {problems}. "
            "Choose a plain Vision Transformer with a class token and biases in attention."
        )
    backbone.load_state_dict(given)


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` under the backbone's names; those it has no name for keep theirs, the last norm and heads go."""
    return {_renamed(name): tensor for name, tensor in tensors.items() if not LEFT_OUT.fullmatch(name)}


def _renamed(name: str) -> str:
    for pattern, template in RENAMED:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return name
