"""Which model of timm weights belong to is told by their names and shapes: the model loads them, every one."""

import time
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from lutbench.errors import UserError
from lutbench.models import architectures
from lutbench.models.architectures import architecture_of
from lutbench.recipes.base import EncoderRecipe


def weights(model: str, **sizes: Any) -> dict[str, Tensor]:
    """Names and shapes of a model of timm without its head."""
    with torch.device("meta"):
        return dict(timm.create_model(model, num_classes=0, **sizes).state_dict())


def found(tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a recipe would say of the architecture."""
    return architecture_of(tensors, config)[0].model_dump(exclude_none=True, exclude={"label"})


def built(recipe: EncoderRecipe, **arguments: Any) -> Any:
    """The model that a recipe describes."""
    sizes = {
        "patch_size": recipe.patch_size,
        "embed_dim": recipe.width,
        "depth": recipe.depth,
        "num_heads": recipe.heads,
    }
    given = {name: value for name, value in sizes.items() if value is not None}
    with torch.device("meta"):
        return timm.create_model(recipe.model, num_classes=0, **given, **arguments)


@pytest.mark.parametrize(
    ("model", "image_size"),
    [
        ("vit_base_patch16_224", 224),
        ("vit_small_patch8_224", 224),
        ("vit_large_patch16_384", 384),
        ("vit_huge_patch14_gap_224", 224),
        ("vit_small_patch14_dinov2", 518),
        ("vit_giant_patch14_reg4_dinov2", 518),
        ("vit_medium_patch16_reg4_gap_256", 256),
        ("deit3_base_patch16_384", 384),
        ("deit_small_distilled_patch16_224", 224),
        ("beit_base_patch16_384", 384),
        ("vit_base_patch16_dinov3_qkvb", 256),
        ("vit_huge_plus_patch16_dinov3", 256),
        ("eva02_small_patch14_336", 336),
        ("swin_base_patch4_window12_384", 384),
        ("convnextv2_base", 224),
        ("resnet101", 224),
    ],
)
def test_timms_own_models_are_known_again_within_three_seconds(model: str, image_size: int) -> None:
    tensors = weights(model)
    architectures._made.cache_clear()
    began = time.process_time()
    assert found(tensors) == {"model": model, "image_size": image_size}
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "patch_size": 4, "depth": 9}),
        ("vit_small_patch16_224", {"img_size": 96, "embed_dim": 320, "num_heads": 5, "depth": 3}),
        ("vit_small_patch14_dinov2", {"img_size": 56, "depth": 2}),
        ("vit_base_patch14_reg4_dinov2", {"img_size": 64, "patch_size": 16}),
        ("vit_giant_patch14_dinov2", {"img_size": 56, "embed_dim": 192, "num_heads": 3, "depth": 2}),
        ("vit_base_patch16_gap_224", {"img_size": 32, "patch_size": 8}),
        ("beit_base_patch16_224", {"img_size": 64, "depth": 2, "num_heads": 6}),
        ("vit_small_patch16_dinov3", {"depth": 3}),
    ],
)
def test_other_sizes_of_timms_models_are_said(model: str, sizes: dict[str, Any]) -> None:
    """And the model of that recipe has the very names and shapes of the weights."""
    tensors = weights(model, **sizes)
    recipe, _ = architecture_of(tensors)
    same = built(recipe, img_size=recipe.image_size)
    assert {name: t.shape for name, t in same.state_dict().items()} == {name: t.shape for name, t in tensors.items()}
    whole = timm.create_model(model, num_classes=0, **{**sizes, "depth": sizes.get("depth", 1)})
    assert same.blocks[0].attn.num_heads == whole.blocks[0].attn.num_heads
    assert same.num_prefix_tokens == whole.num_prefix_tokens


def test_heads_and_norms_are_no_part_of_it() -> None:
    tensors = weights("vit_base_patch16_224")
    tensors["head.weight"] = tensors["fc_norm.weight"] = torch.empty(3, device="meta")
    del tensors["norm.weight"]
    assert found(tensors)["model"] == "vit_base_patch16_224"


def test_the_number_of_heads_is_the_configurations_else_by_convention_and_that_is_said() -> None:
    tensors = weights("vit_small_patch16_224")
    recipe, [note] = architecture_of(tensors)
    assert recipe.heads is None
    assert "6 are taken, as timm's vit_small_patch16_224 has" in note
    assert "MoCo v3's ViT-S has 12" in note
    assert found(tensors, {"num_attention_heads": 12})["heads"] == 12
    assert architecture_of(tensors, {"num_attention_heads": 12})[1] == []
    assert "each 64 wide" in architecture_of(weights("vit_small_patch16_224", depth=5))[1][0]
    assert architecture_of(weights("beit_base_patch16_224", num_heads=6, depth=2))[1] == [], "its tables show them"
    with pytest.raises(UserError, match=r"a width of 48 is neither a multiple of 64.*\[encoder.NAME\]"):
        architecture_of(weights("vit_tiny_patch16_224", embed_dim=48, num_heads=3))
    narrow = weights("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=2)
    assert found(narrow, {"num_attention_heads": 3}) == {
        "model": "vit_tiny_patch16_224",
        "image_size": 224,
        "width": 48,
        "depth": 2,
    }, "which are as many as that model has"


def test_where_positions_are_computed_the_size_of_the_input_is_the_configurations_or_timms() -> None:
    tensors = weights("vit_small_patch16_dinov3")
    assert "256 pixels are taken" in architecture_of(tensors)[1][-1]
    assert found(tensors, {"image_size": 224, "num_attention_heads": 6})["image_size"] == 224
    assert found(weights("convnext_tiny"), {"image_size": 384})["image_size"] == 384


def test_a_name_that_timms_configuration_says_comes_first() -> None:
    """Some models differ in nothing that shapes show."""
    tensors = weights("resnetaa50")
    assert found(tensors)["model"] == "resnet50"
    assert found(tensors, {"architecture": "resnetaa50"})["model"] == "resnetaa50"


@pytest.mark.parametrize("change", ["channels", "a block", "grid", "name", "qkv", "nothing"])
def test_what_fits_no_model_is_refused_with_the_shapes_that_were_found(change: str) -> None:
    tensors = weights("vit_tiny_patch16_224")
    if change == "channels":
        tensors["patch_embed.proj.weight"] = torch.empty(192, 4, 16, 16, device="meta")
    elif change == "a block":
        del tensors["blocks.7.norm1.bias"]
    elif change == "grid":
        tensors["pos_embed"] = torch.empty(1, 151, 192, device="meta")
    elif change == "name":
        tensors["adapter.weight"] = torch.empty(3, device="meta")
    elif change == "qkv":
        tensors = {name: tensor for name, tensor in tensors.items() if "qkv.bias" not in name}
    else:
        tensors = {"weight": torch.empty(3, 4, device="meta")}
    with pytest.raises(UserError, match=r"Expected an encoder that timm has, and found none of these.*\(") as told:
        architecture_of(tensors)
    assert str(tuple(next(iter(tensors.values())).shape)) in str(told.value)


def test_another_activation_than_timms_is_refused() -> None:
    with pytest.raises(UserError, match="hidden_act = 'relu'"):
        architecture_of(weights("vit_tiny_patch16_224"), {"hidden_act": "relu"})
