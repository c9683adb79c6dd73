"""Of what is in a checkpoint one encoder is taken, every tensor of it; what is left out, ambiguous or of another size is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from foreign_checkpoints import (
    IJEPA,
    IMAGES,
    OTHER,
    REGISTERS,
    TINY,
    VIT,
    WITH_REGISTERS,
    WITHOUT_CLASS_TOKEN,
    DINOv2,
    assert_close,
    dino,
    features,
    source,
    under,
)
from foreign_vits import Weights, random_vit, vit_tokens
from safetensors.torch import save_file
from torch import Tensor

from lutbench.adding import Choices, try_weights
from lutbench.errors import UserError
from lutbench.models.formats import encoder_in
from lutbench.models.pretrained import load_encoder
from lutbench.recipes.base import EncoderRecipe

# What is left out, and what is not


def test_what_lies_outside_the_chosen_part_is_nobodys_business(tmp_path: Path) -> None:
    student = OTHER | {"blocks.0.of.nobody": torch.tensor(float("nan"))}
    torch.save(dino(student=student, teacher=VIT), tmp_path / "dino.pth")
    assert_close(features(tmp_path / "dino.pth", TINY, "teacher"), vit_tokens(VIT, IMAGES))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda bias: bias.fill_(float("nan")), r"1 of 30 tensors are not finite \(norm\.bias"),
        (lambda bias: bias.to_sparse(), r"1 of 30 tensors are quantised, sparse"),
        (lambda bias: torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8), r"1 of 30 tensors are quantised"),
    ],
)
def test_numbers_that_nothing_can_be_measured_with_are_refused_in_the_chosen_encoder(
    tmp_path: Path, change: Callable[[Tensor], Tensor], told: str
) -> None:
    teacher = VIT | {"norm.bias": change(VIT["norm.bias"].clone())}
    torch.save(dino(student=OTHER, teacher=teacher), tmp_path / "dino.pth")
    with pytest.raises(UserError, match=told):
        features(tmp_path / "dino.pth", TINY, "teacher")


@pytest.mark.parametrize("name", ["blocks.0.attn.extra.weight", "adapter.weight", "encoder.norm.weight"])
def test_every_tensor_inside_is_accounted_for(tmp_path: Path, name: str) -> None:
    save_file(under("backbone.", VIT | {name: torch.zeros(1)}), tmp_path / "own.safetensors")
    with pytest.raises(UserError, match=f"not part of the model: {name}"):
        features(tmp_path / "own.safetensors", TINY)


def test_left_out_are_heads_and_tokens_of_pretraining_by_their_names_in_the_file() -> None:
    beside = {
        "decoder.0.weight": torch.zeros(1),
        "backbone.mask_token": torch.zeros(1),
        "backbone.head.weight": torch.zeros(1),
    }
    found = encoder_in(under("state_dict.module.", under("backbone.", VIT) | beside), "here")
    assert sorted(found.left_out) == sorted(f"state_dict.module.{name}" for name in beside)
    assert found.tensors.keys() == VIT.keys()


def test_lutbench_add_counts_a_norm_that_the_encoder_does_not_take_as_left_out(tmp_path: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
    both = timm.create_model("vit_tiny_patch16_224", **sizes).state_dict()
    both |= {f"fc_norm.{name}": both[f"norm.{name}"].clone() for name in ("weight", "bias")}
    save_file(both | {"head.bias": torch.zeros(2)}, tmp_path / "own.safetensors")
    told_of = try_weights(str(tmp_path / "own.safetensors"), Choices()).said[0]
    assert "30 tensors, 3 left out." in told_of


# Several encoders, or none


def told(tensors: Weights, part: str = "") -> str:
    with pytest.raises(UserError, match=r"^weights\.pth: ") as error:
        encoder_in(tensors, "weights.pth", part)
    assert "\n" not in str(error.value)
    return str(error.value)


TWO = under("model.student.backbone.", OTHER) | under("model.teacher.backbone.", VIT)


def test_several_encoders_are_listed_by_the_names_that_choose_one() -> None:
    message = told(TWO)
    assert "expected one encoder, found 2: student.backbone, teacher.backbone" in message
    assert 'part = "student.backbone"' in message
    for part in ("teacher", "teacher.backbone", "model.teacher.backbone"):
        assert torch.equal(encoder_in(TWO, "here", part).tensors["norm.bias"], VIT["norm.bias"])


@pytest.mark.parametrize(("part", "found"), [("ema", "none with that name"), ("backbone", "2 that match")])
def test_a_part_that_is_not_there_or_fits_several_is_told_with_those_that_are(part: str, found: str) -> None:
    message = told(TWO, part)
    assert f'expected the encoder part = "{part}", found {found}' in message
    assert "Encoders in it: student.backbone, teacher.backbone." in message


def test_a_part_is_not_passed_over_where_there_is_one_encoder_alone() -> None:
    assert "Encoders in it: backbone." in told(under("backbone.", VIT), "teacher")


def test_an_encoder_outside_of_all_wrappings_is_chosen_by_a_dot() -> None:
    both = VIT | under("momentum_encoder.", OTHER)
    assert "found 2: ., momentum_encoder" in told(both)
    found = encoder_in(both, "here", ".")
    assert torch.equal(found.tensors["norm.bias"], VIT["norm.bias"])
    assert found.tensors.keys() == VIT.keys()


def test_parameters_that_fsdp_flattened_are_refused_by_name_with_what_to_do() -> None:
    flat = {f"_fsdp_wrapped_module.blocks.{i}._fsdp_wrapped_module._flat_param": torch.zeros(9) for i in range(2)}
    for message in (told(flat), told(under("_fsdp_wrapped_module.", VIT) | flat)):
        assert (
            "found 2 parameters flattened by FSDP (_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._flat_param"
            in message
        )
        assert "full_state_dict=True" in message
    assert encoder_in(under("teacher.", VIT) | under("student.", flat), "here").tensors.keys() == VIT.keys()


def test_of_a_checkpoint_without_encoder_the_formats_that_were_tried_are_told_and_its_first_keys() -> None:
    message = told({f"layer{i}.weight": torch.zeros(1) for i in range(9)})
    assert "timm (patch_embed.proj.weight)" in message
    assert "layer0.weight, layer1.weight, layer2.weight, layer3.weight and 5 more" in message


# Sizes


@pytest.mark.parametrize(
    ("weights", "architecture", "message"),
    [
        (VIT, {"patch_size": 16}, "The weights have patches of 8 pixels, the encoder patches of 16 pixels."),
        (VIT, {"width": 48}, "The weights have a width of 24, the encoder a width of 48."),
        (VIT, {"depth": 5}, "The weights have 2 blocks, the encoder 5 blocks."),
        (random_vit(hidden=64), {}, "The weights have MLPs of 64 hidden units, the encoder MLPs of 96 hidden units."),
        (IJEPA, {}, "The weights have no class token, the encoder a class token."),
        (WITH_REGISTERS, {"model": "vit_small_patch14_dinov2"}, "The weights have 4 registers, the encoder 0 registers."),
        (
            VIT | {"pos_embed": torch.zeros(1, 21, 24)}, {},
            "They have a position embedding of 21 tokens, the encoder one of 4 x 4 patches and 1 prefix tokens;",
        ),
        (DINOv2, {}, "not part of the model: blocks.0.ls1.gamma"),
    ],
)  # fmt: skip
def test_a_wrong_size_is_told_with_the_numbers_of_both(
    tmp_path: Path, weights: Weights, architecture: dict[str, Any], message: str
) -> None:
    save_file(weights, tmp_path / "own.safetensors")
    with pytest.raises(UserError, match="the weights do not fit the encoder") as error:
        features(tmp_path / "own.safetensors", TINY.model_copy(update=architecture))
    assert message in str(error.value)


@pytest.mark.parametrize(("weights", "architecture"), [(IJEPA, WITHOUT_CLASS_TOKEN), (WITH_REGISTERS, REGISTERS)])
def test_position_embeddings_without_class_token_and_with_registers_are_resized(
    tmp_path: Path, weights: Weights, architecture: EncoderRecipe
) -> None:
    save_file(weights, tmp_path / "own.safetensors")
    larger = load_encoder(source(architecture), tmp_path / "own.safetensors", image_size=48)
    smaller = load_encoder(source(architecture), tmp_path / "own.safetensors")
    assert larger.pos_embed.shape == (1, 36, 24)
    grids = [encoder.pos_embed.detach().unflatten(1, (side, side)) for encoder, side in ((larger, 6), (smaller, 4))]
    for corner in (0, -1):  # each corner of the grid is nearest to the same corner
        assert torch.cosine_similarity(grids[0][0, corner, corner], grids[1][0, corner, corner], dim=0) > 0.8
