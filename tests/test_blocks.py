"""The features of blocks are the tokens after them, with the encoder's last norm."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import SUITE, TOY, performed_by, toy_run, write_images

from downstream import knn
from lutbench.errors import UserError
from lutbench.models.blocks import probe_features, probe_width
from lutbench.models.encoders import create_encoder, encode
from lutbench.recipes.base import EncoderRecipe

TOY_VIT = EncoderRecipe(model="vit_tiny_patch16_224", image_size=32, patch_size=8, width=16, depth=4, heads=2)
KNN: dict[str, Any] = {"kind": "knn", "neighbours": 5}


@torch.no_grad()
def test_they_are_the_tokens_after_each_block_through_the_last_norm_pooled() -> None:
    encoder, images = create_encoder(TOY_VIT).eval(), torch.randn(3, 3, 32, 32)
    model: Any = encoder
    tokens, after = model.norm_pre(model._pos_embed(model.patch_embed(images))), []
    for block in model.blocks:
        tokens = block(tokens)
        after.append(model.norm(tokens))
    found = probe_features(encoder, images, "class", [3, 1])
    assert torch.equal(found, torch.cat([after[2][:, 0], after[0][:, 0]], 1)), "in the order in which they are named"
    found = probe_features(encoder, images, "mean", [-1, 2])
    assert torch.equal(found, torch.cat([after[3][:, 1:].mean(1), after[1][:, 1:].mean(1)], 1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "pool"),
    [
        ("vit_tiny_patch16_224", "class"),
        ("vit_tiny_patch16_224", "mean"),
        ("deit_tiny_distilled_patch16_224", "mean"),
        ("vit_small_patch14_reg4_dinov2", "mean"),
        ("vit_base_patch16_siglip_224", "mean"),
        ("eva02_tiny_patch14_224", "class"),
        ("beit_base_patch16_224", "mean"),
    ],
)
def test_those_of_the_last_block_are_the_encoders_output(model: str, pool: Any) -> None:
    side = 28 if "14" in model else 32
    recipe = EncoderRecipe(model=model, image_size=side)
    encoder, images = create_encoder(recipe).eval(), torch.randn(2, 3, side, side)
    expected = encode(encoder, images, pool)
    assert torch.equal(probe_features(encoder, images, pool, [-1]), expected)
    assert probe_width(recipe, side, pool, (1, -1)) == 2 * expected.shape[1]


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ([3], r"blocks = \[3\]: there is no block 3; this encoder has 2 blocks\. Use 1 to 2"),
        ([-3], r"there is no block -3; this encoder has 2"),
        ([2, -1], r"a block of this encoder with 2 blocks appears twice"),
    ],
)
def test_blocks_that_are_not_there_are_refused_before_compute(tmp_path: Path, blocks: list[int], told: str) -> None:
    write_images(tmp_path)
    with pytest.raises(UserError, match=told):
        knn.check(toy_run(tmp_path, **KNN | {"blocks": blocks}))


@pytest.mark.parametrize(
    ("blocks", "told"), [([1, 1], "appears twice"), ([0], "there is no block 0"), ([], "at least 1")]
)
def test_blocks_that_no_encoder_has_are_refused_in_the_suite_file(tmp_path: Path, blocks: list[int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        toy_run(tmp_path, **KNN | {"blocks": blocks})


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "resnet18", "convnext_atto"])
def test_encoders_without_blocks_in_a_row_are_refused(tmp_path: Path, model: str) -> None:
    write_images(tmp_path)
    suite = SUITE.replace(TOY[TOY.index("[encoder.toy]") :], f'[encoder.toy]\nmodel = "{model}"\nimage_size = 224\n')
    with pytest.raises(
        UserError,
        match=r"task, row scratch: blocks: expected a Vision Transformer, found \w+, which has no sequence of blocks",
    ):
        knn.check_weights(toy_run(tmp_path, suite_text=suite, **KNN | {"blocks": [1]}))


def test_a_model_of_timm_that_trips_over_its_own_code_is_refused_by_name() -> None:
    recipe = EncoderRecipe(model="vit_relpos_small_patch16_224")
    with pytest.raises(
        UserError,
        match=r"VisionTransformerRelPos vit_relpos_small_patch16_224 cannot return features of single blocks",
    ):
        probe_width(recipe, 224, "mean", (1,))


@pytest.mark.parametrize("fresh_crops", [True, False])
def test_a_linear_probe_takes_blocks(tmp_path: Path, fresh_crops: bool) -> None:
    write_images(tmp_path)
    settings = {"kind": "linear", "epochs": 60, "warmup_epochs": 1, "batch": 12, "base_lr": 20.0, "pool": "mean"}
    run = toy_run(tmp_path, **settings, fresh_crops=fresh_crops, crop_scale=[0.5, 1.0], blocks=[1, 2])
    found = performed_by(run, 1)
    assert found["measurements"]["top-1"] > 60, "three colours are easily told apart"
