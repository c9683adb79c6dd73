"""A student small enough for tests, and views for it."""

from typing import Any

import torch

from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.views import Views

TINY_ENCODER = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4, width=24, depth=2, heads=3)
"""Sees 16 patches."""

CONTROLS: dict[str, dict[str, Any]] = {
    "LUT": {},
    "MAE": {"context_weight": 0.0},
    "MAE with its own crop": {"context_weight": 0.0, "crop": "random"},
    "one direction": {"both_directions": False},
    "masked teacher": {"teacher_view": "masked"},
    "masked teacher, one direction": {"teacher_view": "masked", "both_directions": False},
    "l2": {"context_loss": "l2"},
    "smooth l1": {"context_loss": "smooth_l1"},
    "infonce": {"context_loss": "infonce"},
    "class token": {"context_target": "class"},
    "per token": {"context_target": "tokens"},
    "per token, one direction, l2": {"context_target": "tokens", "both_directions": False, "context_loss": "l2"},
    "LUT with MAE's crop": {"crop": "random"},
    "one linear layer as head": {"head_depth": 1},
    "three layers, layer norm": {"head_depth": 3, "head_norm": "layer"},
    "wide head, no norm": {"head_width": 50, "head_norm": "none"},
    "raw pixels": {"normalise_target": False},
    "half masked": {"mask_ratio": 0.5},
}
"""Every control, as changes to the defaults."""


def tiny_recipe(**changes: Any) -> PretrainRecipe:
    """The paper's recipe with a tiny geometry."""
    tiny = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "head_width": 20}
    return PretrainRecipe(data=DataRecipe(), encoder=TINY_ENCODER, **{**tiny, **changes})


def random_views(batch: int = 6, seed: int = 0) -> Views:
    """Views for :data:`TINY_ENCODER`, which lie within 16 pixels of each other in images of 40 x 48; those of the first image lie apart."""
    draw = torch.Generator().manual_seed(seed)
    view1, view2 = (torch.randn(batch, 3, 16, 16, generator=draw) for _ in range(2))
    noise = torch.rand(batch, 16, generator=draw)
    corners, flips = (
        torch.randint(-3, 12, (batch, 2, 2), generator=draw),
        torch.randint(2, (batch, 2, 1), generator=draw),
    )
    corners[0, 1] += 20
    sizes = torch.tensor([16, 16]).expand(batch, 2, 2), torch.tensor([40, 48]).expand(batch, 2, 2)
    return Views(view1, view2, noise, torch.cat([corners, sizes[0], flips, sizes[1]], dim=2).float())
