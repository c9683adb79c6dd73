"""Which model of timm weights belong to is told by their names and shapes: the model loads them, every one."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from lutbench.adding import Choices, try_weights
from lutbench.errors import UserError
from lutbench.models import architectures
from lutbench.models.architectures import architecture_of
from lutbench.models.configurations import configuration_beside
from lutbench.models.encoders import create_encoder, export_encoder
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


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("beit_base_patch16_224", {"depth": 2, "num_heads": 6}),
        ("vit_small_patch16_dinov3", {"depth": 3}),
        ("deit_tiny_distilled_patch16_224", {"depth": 3}),
    ],
)
def test_other_sizes_of_what_is_no_plain_vit_are_refused_as_the_weights(model: str, sizes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"The weights are those of timm's .* with other sizes \(.*depth") as told:
        architecture_of(weights(model, **sizes), {"num_attention_heads": 6})
    assert f"depth {sizes['depth']}" in str(told.value)


NEAREST: dict[str, tuple[dict[str, Any], str]] = {
    "mlp": ({"mlp_ratio": 2}, "the weights have MLPs of 384 hidden units, the encoder MLPs of 768 hidden units."),
    "channels": ({"in_chans": 1}, "the weights have 1 channels of input, the encoder 3 channels of input."),
    "bias": ({"qkv_bias": False}, "missing: blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias, "),
    "missing": ({}, "missing: blocks.7.norm1.bias."),
    "extra": ({}, "not part of the model: adapter.weight."),
    "grid": ({}, "pos_embed (1, 151, 192) is not for a square grid of patches."),
}


@pytest.mark.parametrize("name", NEAREST)
def test_of_what_fits_no_model_it_is_told_in_what_it_differs_from_the_nearest(name: str) -> None:
    sizes, problem = NEAREST[name]
    tensors = weights("vit_tiny_patch16_224", **sizes)
    if name == "missing":
        del tensors["blocks.7.norm1.bias"]
    elif name == "extra":
        tensors["adapter.weight"] = torch.empty(3, device="meta")
    elif name == "grid":
        tensors["pos_embed"] = torch.empty(1, 151, 192, device="meta")
    with pytest.raises(UserError) as told:
        architecture_of(tensors)
    assert f" of width 192 and depth 12: {problem}" in str(told.value)


def test_of_a_resnet_that_is_none_of_timms_it_is_told_too() -> None:
    tensors = weights("resnet18")
    del tensors["layer2.1.bn1.bias"]
    with pytest.raises(UserError, match=r"The most similar model is resnet18: missing: layer2\.1\.bn1\.bias\. "):
        architecture_of(tensors)


def test_heads_and_norms_are_no_part_of_it() -> None:
    tensors = weights("vit_base_patch16_224")
    tensors["head.weight"] = tensors["fc_norm.weight"] = torch.empty(3, device="meta")
    del tensors["norm.weight"]
    assert found(tensors)["model"] == "vit_base_patch16_224"


def test_the_number_of_heads_is_the_configurations_else_by_convention_and_that_is_said() -> None:
    tensors = weights("vit_small_patch16_224")
    recipe, [note] = architecture_of(tensors)
    assert recipe.heads is None
    assert "assumed: 6, as timm's vit_small_patch16_224 has" in note
    moco, [note] = architecture_of(tensors, {}, "MoCo v3 encoder")
    assert moco.heads == 12
    assert "assumed: 12, as MoCo v3's ViT-S has" in note
    assert found(weights("vit_base_patch16_224")) == architecture_of(
        weights("vit_base_patch16_224"), {}, "MoCo v3 encoder"
    )[0].model_dump(exclude_none=True, exclude={"label"})
    assert found(tensors, {"num_attention_heads": 12})["heads"] == 12
    assert architecture_of(tensors, {"num_attention_heads": 12})[1] == []
    assert "each 64 wide" in architecture_of(weights("vit_small_patch16_224", depth=5))[1][0]
    assert architecture_of(weights("beit_base_patch16_224"))[1] == [], "its tables show them"
    with pytest.raises(UserError, match=r"the width 48 is neither a multiple of 64.*\[encoder.NAME\]"):
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
    assert "assumed: 256 pixels" in architecture_of(tensors)[1][-1]
    assert found(tensors, {"image_size": 224, "num_attention_heads": 6})["image_size"] == 224
    assert found(weights("convnext_tiny"), {"image_size": 384})["image_size"] == 384


def test_a_name_that_timms_configuration_says_comes_first() -> None:
    """Some models differ in nothing that shapes show."""
    tensors = weights("resnetaa50")
    recipe, [note] = architecture_of(tensors)
    assert recipe.model == "resnet50"
    assert re.match(r"The shapes fit resnet50, but also .*resnetaa50.*; assumed: resnet50\.", note)
    assert "resnetblur50" in note
    assert architecture_of(weights("convnext_atto"))[1] == []
    assert architecture_of(tensors, {"architecture": "resnetaa50"})[1] == []
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
    with pytest.raises(UserError, match=r"No timm model fits these.*\(") as told:
        architecture_of(tensors)
    assert str(tuple(next(iter(tensors.values())).shape)) in str(told.value)


# --- What lies beside weights


def lying_beside(folder: Path, content: dict[str, Any], **sizes: Any) -> Path:
    """A file of weights, 64 wide with 2 heads, beside a config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0} | sizes
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224", **arguments).state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def test_heads_are_those_that_this_suites_export_says(tmp_path: Path) -> None:
    recipe = EncoderRecipe(
        model="vit_tiny_patch16_224", image_size=32, patch_size=8, width=64, depth=2, heads=2, label=""
    )
    export_encoder(create_encoder(recipe), recipe, tmp_path)
    tried = try_weights(str(tmp_path / "encoder.safetensors"), Choices())
    assert tried.source.architecture == recipe
    assert "according to encoder.json next to the weights" in tried.said[1]
    assert "not stored in weights" not in " ".join(tried.said)
    with pytest.raises(UserError, match="--heads 4: the weights have 2 heads"):
        try_weights(str(tmp_path / "encoder.safetensors"), Choices(heads=4))
    assert configuration_beside(tmp_path / "encoder.safetensors")["num_attention_heads"] == 2


TIMMS_VIT = {"architecture": "vit_tiny_patch16_224"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**TIMMS_VIT, "model_args": {"num_heads": 2, "embed_dim": 64, "img_size": 32}}, (2, 32)),
        ({**TIMMS_VIT, "pretrained_cfg": {"input_size": [3, 96, 96]}}, (3, 96)),
        ({"num_attention_heads": 2, "image_size": 32, "hidden_act": "gelu"}, (2, 32)),
        ({"num_attention_heads": "2", "image_size": [32, 32], "layer_norm_eps": None}, (None, None)),
        ({"architecture": "nobodys", "model_args": []}, (None, None)),
    ],
)
def test_heads_and_size_are_those_that_a_configuration_says(
    tmp_path: Path, content: dict[str, Any], said: tuple[int | None, int | None]
) -> None:
    path = lying_beside(tmp_path, content)
    for weights_at in (path, path.parent):
        found = configuration_beside(weights_at)
        assert (found.get("num_attention_heads"), found.get("image_size")) == said


def test_add_takes_the_heads_of_timms_configuration(tmp_path: Path) -> None:
    path = lying_beside(tmp_path, {**TIMMS_VIT, "model_args": {"num_heads": 2, "embed_dim": 64}})
    assert try_weights(str(path), Choices()).source.architecture.heads == 2
    with pytest.raises(UserError, match=r"has 2 heads, .* has 4"):
        try_weights(str(path), Choices(heads=4))


def test_add_knows_moco_v3s_small_vit(tmp_path: Path) -> None:
    small = timm.create_model("vit_small_patch16_224", depth=2, img_size=32, num_classes=0)
    weights_of_it = {f"module.momentum_encoder.{name}": tensor for name, tensor in small.state_dict().items()}
    torch.save({"state_dict": weights_of_it}, tmp_path / "moco.pth.tar")
    assert try_weights(str(tmp_path / "moco.pth.tar"), Choices()).source.architecture.heads == 12


def test_a_model_that_is_named_has_the_heads_of_the_configuration(tmp_path: Path) -> None:
    path = lying_beside(
        tmp_path,
        {"num_attention_heads": 6},
        img_size=224,
        patch_size=16,
        embed_dim=192,
        depth=12,
        num_heads=6,
    )
    with pytest.raises(UserError, match=r"config\.json beside the weights has 6 heads, .*vit_tiny_patch16_224 has 3"):
        try_weights(str(path), Choices(model="vit_tiny_patch16_224"))


@pytest.mark.parametrize(
    ("model", "activation", "timms"),
    [
        ("vit_tiny_patch16_224", "silu", "gelu"),
        ("vit_tiny_patch16_224", "relu", "gelu"),
        ("vit_huge_plus_patch16_dinov3", "gelu", "silu"),
        ("resnet18", "gelu", "relu"),
    ],
)
def test_another_activation_than_timms_is_refused(model: str, activation: str, timms: str) -> None:
    tensors = weights(model)
    with pytest.raises(UserError, match=f"hidden_act = '{activation}', but .* use '{timms}'"):
        architecture_of(tensors, {"hidden_act": activation})
    assert architecture_of(tensors, {"hidden_act": timms})


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_dinov2s_swiglu_is_the_same_whatever_the_configuration_says(activation: str) -> None:
    assert architecture_of(weights("vit_giant_patch14_reg4_dinov2"), {"hidden_act": activation})


def test_an_epsilon_that_shows_in_results_is_refused() -> None:
    tensors = weights("vit_tiny_patch16_224")
    with pytest.raises(UserError, match=r"layer_norm_eps = 0\.01, but timm's encoders use 1e-06"):
        architecture_of(tensors, {"layer_norm_eps": 1e-2})
    assert architecture_of(tensors, {"layer_norm_eps": 1e-12})
