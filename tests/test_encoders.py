"""Encoders are timm's: made from a recipe, loaded from anywhere, exported so that timm reads them as they are."""

import argparse
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from downstream.finetune import build_classifier, layer_decay_groups
from downstream.segmentation.task import check_encoder
from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder, encode, export_encoder, geometry_of
from lutbench.models.meta import shapes_only
from lutbench.models.pretrained import load_encoder
from lutbench.models.weight_files import sha256_of
from lutbench.models.weights import save_weights
from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.downstream import EncoderSource, FinetuneRecipe
from lutbench.recipes.loading import SUITES
from lutbench.recipes.segmentation import SegmentationDataRecipe, SegmentationRecipe

TINY = EncoderRecipe(model="vit_tiny_patch16_224", image_size=32, patch_size=8, width=24, depth=2, heads=2)
SMALL = EncoderRecipe(model="vit_small_patch16_224")
TOY = EncoderRecipe.model_validate(tomllib.loads((SUITES / "tiny.toml").read_text())["encoder"]["toy"])


def images(size: int = 32, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained(recipe: EncoderRecipe = TINY, **changes: Any) -> VisionTransformer:
    """An encoder in which no parameter has a special value, as if trained."""
    encoder = create_encoder(recipe, **changes)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return encoder.eval()


def source(kind: str, architecture: EncoderRecipe = TINY) -> EncoderSource:
    return EncoderSource.model_validate({"architecture": architecture, "kind": kind})


def saved(tensors: dict[str, Tensor], folder: Path, key: str | None = "model") -> Path:
    path = folder / "checkpoint.pth"
    torch.save({key: tensors, "args": argparse.Namespace(blr=1.5e-4)} if key else tensors, path)
    return path


def assert_same_weights(first: VisionTransformer, second: VisionTransformer) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# Making


def test_the_recipe_changes_the_geometry_and_nothing_else() -> None:
    encoder = create_encoder(TINY)
    assert encoder.embed_dim == 24
    assert len(encoder.blocks) == 2
    assert encoder.patch_embed.grid_size == (4, 4)
    assert encoder.forward_features(images()).shape == (3, 17, 24)
    assert encoder.norm.eps == 1e-6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "vit_bse_patch16_224"}, "no such model. Did you mean 'vit_base_patch16_224'"),
        ({"model": "vit_base_patch16_224.mea"}, "no such weights. Did you mean 'vit_base_patch16_224.mae'"),
        ({"model": "resnet50"}, "patch_size, width, depth, heads: .* resnet50 is timm's ResNet. Remove them"),
        ({"model": "vit_base_r50_s16_224"}, "Vision Transformer with HybridEmbed instead of patches"),
        ({"image_size": 30}, "image_size = 30 .* patch_size = 8: use 32"),
        ({"heads": 5}, "width = 24 is not divisible by heads = 5"),
        ({"width": None, "heads": 5}, "width = 192 is not divisible by heads = 5"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_remedy(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        create_encoder(TINY.model_copy(update=changes))


def test_another_image_size_is_checked_too() -> None:
    with pytest.raises(UserError, match="image_size = 36"):
        create_encoder(TINY, image_size=36)


# Features


def test_features_are_the_class_token_or_the_mean_of_the_patches_behind_the_last_norm() -> None:
    encoder = trained()
    tokens = encoder.forward_features(images())
    assert torch.equal(encode(encoder, images(), "class"), tokens[:, 0])
    assert torch.allclose(encode(encoder, images(), "mean"), sum(tokens[:, i] for i in range(1, 17)) / 16, atol=1e-6)
    assert torch.equal(encode(encoder, images(), "mean"), tokens[:, 1:].mean(1))


def test_class_token_features_of_an_encoder_without_one_are_refused() -> None:
    recipe = TINY.model_copy(update={"model": "vit_base_patch16_siglip_gap_224"})
    encoder = create_encoder(recipe).eval()
    assert torch.equal(encode(encoder, images(), "mean"), encoder.forward_features(images()).mean(1))
    with pytest.raises(UserError, match="no class token"):
        encode(encoder, images(), "class")


# Exporting


@pytest.mark.parametrize("recipe", [TOY, SMALL], ids=["toy of tiny.toml", "ViT-S/16"])
def test_timm_loads_an_export_strictly_by_the_call_written_beside_it(
    recipe: EncoderRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = trained(recipe)
    sha256 = export_encoder(encoder, recipe, tmp_path)
    description = json.loads((tmp_path / "encoder.json").read_text())
    monkeypatch.chdir(tmp_path)
    for loaded in (
        timm.create_model(description["model"], **description["arguments"], checkpoint_path="encoder.safetensors"),
        eval(description["load"]),
    ):
        pixels = images(recipe.image_size, count=2)
        with torch.no_grad():
            assert torch.allclose(
                loaded.eval().forward_features(pixels), encoder.forward_features(pixels), rtol=0, atol=1e-6
            )
    assert description["sha256"] == sha256 == sha256_of(tmp_path / "encoder.safetensors")
    assert description["mean"] == [0.485, 0.456, 0.406]
    assert description["std"] == [0.229, 0.224, 0.225]


def test_a_runs_export_is_loaded_back_under_its_hash_and_no_other(tmp_path: Path) -> None:
    encoder = trained()
    sha256 = export_encoder(encoder, TINY, tmp_path)
    assert_same_weights(load_encoder(source("run"), tmp_path / "encoder.safetensors", sha256), encoder)
    with pytest.raises(UserError, match="expected sha256 0000"):
        load_encoder(source("run"), tmp_path / "encoder.safetensors", "0" * 64)


# Loading


def test_a_released_mae_checkpoint_gives_its_encoder_and_leaves_its_decoder(tmp_path: Path) -> None:
    encoder = trained()
    extra = ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight", "head.weight"]
    path = saved(encoder.state_dict() | {name: torch.zeros(1) for name in extra}, tmp_path)
    assert_same_weights(load_encoder(source("checkpoint"), path), encoder)


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "backbone.", "module.encoder."])
@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_what_training_scripts_put_before_the_names_is_removed(tmp_path: Path, prefix: str, key: str | None) -> None:
    encoder = trained()
    tensors = {prefix + name: tensor for name, tensor in encoder.state_dict().items()}
    around = "module." if prefix.startswith("module.") else ""
    beside = {f"{around}projector.0.weight": torch.zeros(1), f"{around}decoder.norm.weight": torch.zeros(1)}
    assert_same_weights(load_encoder(source("checkpoint"), saved(tensors | beside, tmp_path, key)), encoder)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    halved = {name: tensor.half() for name, tensor in trained().state_dict().items()}
    encoder = load_encoder(source("checkpoint"), saved(halved, tmp_path))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert torch.equal(encoder.norm.weight, halved["norm.weight"].float())


def test_anything_missing_unexpected_or_of_another_shape_is_listed(tmp_path: Path) -> None:
    tensors = trained().state_dict()
    del tensors["blocks.1.attn.proj.bias"]
    tensors["blocks.1.gamma"] = torch.zeros(1)
    tensors["norm.weight"] = torch.zeros(25)
    tensors["blocks.1.\x1b[31mred"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        load_encoder(source("checkpoint"), saved(tensors, tmp_path))
    assert "missing: blocks.1.attn.proj.bias;" in str(caught.value)
    assert r"not part of the model: 'blocks.1.\x1b[31mred', blocks.1.gamma;" in str(caught.value)
    assert "norm.weight: expected (24,), found (25,)" in str(caught.value)


@pytest.mark.parametrize("name", ["optimizer.step", "teacher_head.weight", "decoderless", "blocks.0.mask_token"])
def test_only_named_parts_may_be_left_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"not part of the model: {name}"):
        load_encoder(source("checkpoint"), saved(trained().state_dict() | {name: torch.zeros(1)}, tmp_path))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    with pytest.raises(UserError, match=r"The weights have 2 blocks, the encoder 3 blocks"):
        load_encoder(source("checkpoint", TINY.model_copy(update={"depth": 3})), path)
    with pytest.raises(
        UserError, match=r"encoder vit_tiny_patch16_224\. The weights have a width of 24, the encoder a width of 48\."
    ):
        load_encoder(source("checkpoint", TINY.model_copy(update={"width": 48})), path)


def test_weights_of_no_vision_transformer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected the weights of one encoder.*conv1\.weight"):
        load_encoder(source("checkpoint"), saved({"conv1.weight": torch.zeros(1)}, tmp_path))


def test_only_the_grid_part_of_the_position_embedding_is_resized(tmp_path: Path) -> None:
    encoder = trained()
    path = saved(encoder.state_dict(), tmp_path)
    larger = load_encoder(source("checkpoint"), path, image_size=48)
    before, after = encoder.state_dict(), larger.state_dict()
    assert after["pos_embed"].shape == (1, 37, 24)
    assert torch.equal(after["pos_embed"][:, :1], before["pos_embed"][:, :1])
    grid = resample_abs_pos_embed(before["pos_embed"][:, 1:], [6, 6], num_prefix_tokens=0)
    assert torch.equal(after["pos_embed"][:, 1:], grid)
    assert all(torch.equal(after[name], before[name]) for name in before if name != "pos_embed")
    assert larger.forward_features(images(48)).shape == (3, 37, 24)


def test_a_classifier_that_pools_before_its_last_norm_gives_the_features_it_was_trained_for(tmp_path: Path) -> None:
    classifier = trained(classes=5, pooled_norm=True)
    loaded = load_encoder(source("checkpoint"), saved(classifier.state_dict(), tmp_path)).eval()
    expected = classifier.forward_head(classifier.forward_features(images()), pre_logits=True)
    assert torch.allclose(encode(loaded, images(), "mean"), expected, atol=1e-6)


def test_weights_from_scratch_depend_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    first = load_encoder(source("scratch"), seed=1)
    drawn = torch.rand(1)
    assert_same_weights(load_encoder(source("scratch"), seed=1), first)
    assert not torch.equal(load_encoder(source("scratch"), seed=2).cls_token, first.cls_token)  # type: ignore[arg-type]
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)


def test_timm_weights_that_are_not_here_and_cannot_be_fetched_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224 are not on this machine, .*could not be reached"):
        load_encoder(source("timm", EncoderRecipe(model="vit_tiny_patch16_224")))


def test_a_model_without_weights_in_timm_is_refused_as_a_source() -> None:
    with pytest.raises(UserError, match="no pre-trained weights"):
        load_encoder(source("timm", EncoderRecipe(model="vit_giant_patch14_224")))


def test_safetensors_of_anybody_are_a_source_too(tmp_path: Path) -> None:
    encoder = trained()
    save_weights(encoder.state_dict(), tmp_path / "anybody.safetensors")
    assert_same_weights(load_encoder(source("checkpoint"), tmp_path / "anybody.safetensors"), encoder)


# Every Vision Transformer of timm

VITS = [*timm.list_models("vit_*"), *timm.list_models("deit*")]


def refused(check: Callable[[], object]) -> bool:
    """Whether something is refused; if so, in one paragraph that names the thing and says what to do."""
    try:
        check()
    except UserError as error:
        text = str(error)
    else:
        return False
    assert "\n" not in text
    assert re.search(r"[Cc]hoose|Set|take", text), text
    return True


def usable(model: str, **sizes: int) -> bool:
    """Whether a model, of other sizes if given, is an encoder for all of classification, and for segmentation or refused for that."""
    recipe = EncoderRecipe(model=model, depth=4, **sizes)  # blocks are alike, and UPerNet wants four
    if refused(lambda: geometry_of(recipe)):
        return False
    geometry = geometry_of(recipe)
    side = 4 * geometry.patch_size
    source = EncoderSource(architecture=recipe, kind="scratch")
    tuning = FinetuneRecipe(data=DataRecipe(), encoder=source, image_size=side)
    built: list[nn.Module] = []
    with shapes_only():
        encoder, pixels = create_encoder(recipe, side).eval(), torch.empty(2, 3, side, side)
        assert encode(encoder, pixels, "mean").shape == (2, geometry.width)
        assert refused(lambda: encode(encoder, pixels, "class")) != geometry.class_token
        if not refused(lambda: built.append(build_classifier(encoder, tuning, 3, seed=0))):
            classifier = built[0].eval()
            assert classifier(pixels).shape == (2, 3)
            grouped = [p for group in layer_decay_groups(classifier, tuning) for p in group["params"]]
            assert len(grouped) == sum(p.requires_grad for p in classifier.parameters())
    scenes = SegmentationDataRecipe(source="mosaics")
    refused(lambda: check_encoder(SegmentationRecipe(data=scenes, encoder=source, crop=side, stride=side)))
    return True


ONE_OF_EACH = [
    "deit_tiny_distilled_patch16_224",  # two class tokens and two heads
    "vit_small_patch16_18x2_224",  # parallel blocks
    "vit_base_patch16_xp_224",  # parallel attention and MLP
    "vit_base_r50_s16_224",  # a ResNet in place of patches
    "vit_base_mci_224",  # a convolutional stem
    "vit_base_patch16_rope_224",  # another class
    "vit_relpos_small_patch16_224",  # relative positions
]


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_what_is_no_plain_vision_transformer_is_refused_in_a_paragraph(model: str) -> None:
    assert not usable(model)


@pytest.mark.parametrize(
    "model",
    [
        "vit_tiny_patch16_224",
        "deit3_small_patch16_224",  # LayerScale, and no position of the class token
        "vit_small_patch14_reg4_dinov2",  # registers
        "vit_base_patch16_clip_224",  # a norm before the blocks
        "vit_base_patch16_siglip_224",  # attention pooling, no class token
    ],
)
def test_a_plain_vision_transformer_with_what_timm_adds_is_usable_in_every_task(model: str) -> None:
    assert usable(model)


def test_a_vision_transformer_without_a_last_norm_is_refused_for_fine_tuning_alone() -> None:
    assert usable("vit_intern300m_patch14_448")
    source = EncoderSource(architecture=EncoderRecipe(model="vit_intern300m_patch14_448", depth=1), kind="scratch")
    tuning = FinetuneRecipe(data=DataRecipe(), encoder=source, image_size=56)
    with pytest.raises(UserError, match="without a final norm"), torch.device("meta"):
        build_classifier(create_encoder(source.architecture, 56), tuning, 3, seed=0)


@pytest.mark.slow
def test_every_vision_transformer_of_timm_is_usable_or_refused_in_a_paragraph() -> None:
    """Of few channels, which decide nothing and take time where one block is computed, to compare it with MMSegmentation's."""
    assert sum(usable(model, width=48, heads=3) for model in VITS) > 100
