"""Models of timm's families, small enough for tests, under names of their own: what a package that registers models does."""

from typing import Any

from timm.models import register_model
from timm.models.beit import _create_beit
from timm.models.eva import _create_eva
from timm.models.swin_transformer import _create_swin_transformer
from torch import nn


@register_model
def small_swin(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    sizes = {"patch_size": 4, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 6)}
    return _create_swin_transformer("swin_tiny_patch4_window7_224", pretrained, **sizes | kwargs)


@register_model
def small_beit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    sizes = {
        "patch_size": 16,
        "embed_dim": 48,
        "depth": 4,
        "num_heads": 3,
        "use_rel_pos_bias": True,
        "init_values": 0.1,
    }
    return _create_beit("beit_base_patch16_224", pretrained, **sizes | kwargs)


@register_model
def small_eva(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EVA-02: SwiGLU, rotary positions, absolute ones too."""
    sizes = {"patch_size": 14, "embed_dim": 48, "depth": 4, "num_heads": 3, "swiglu_mlp": True, "use_rot_pos_emb": True}
    return _create_eva("eva02_tiny_patch14_224", pretrained, **sizes | {"ref_feat_shape": (16, 16)} | kwargs)


@register_model
def small_dinov3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DINOv3: registers, LayerScale and rotary positions alone."""
    sizes = {"patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 3, "init_values": 0.1, "num_reg_tokens": 4}
    rope = {"rope_type": "dinov3", "use_rot_pos_emb": True, "use_abs_pos_emb": False, "use_fc_norm": False}
    return _create_eva("vit_small_patch16_dinov3", pretrained, **sizes | rope | kwargs)
