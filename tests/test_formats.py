"""Checkpoints as people have them give the encoder that is in them, with the features that the papers' formulas give."""

import argparse
import collections
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from foreign_checkpoints import (
    CHUNKED,
    DINOV2,
    GATED,
    HEAD,
    IJEPA,
    IMAGES,
    OPTIMIZER,
    OTHER,
    REGISTERS,
    SWIGLU,
    TINY,
    VIT,
    WITH_REGISTERS,
    WITHOUT_CLASS_TOKEN,
    DINOv2,
    assert_close,
    dino,
    features,
    under,
)
from foreign_vits import (
    PATCH,
    SIDE,
    Weights,
    beit_tokens,
    dinov3_tokens,
    random_beit,
    random_dinov3,
    random_vit,
    vit_tokens,
)

from lutbench.errors import UserError
from lutbench.models.formats import encoder_in
from lutbench.models.pretrained import fit
from lutbench.models.weights import read_shapes, read_tensors
from lutbench.recipes.base import EncoderRecipe

IBOT = OTHER | {"masked_embed": torch.zeros(1, 24)}
MAE = VIT | {
    "mask_token": torch.zeros(1, 1, 8),
    "decoder_pos_embed": torch.zeros(1, 17, 8),
    "decoder_embed.weight": torch.zeros(8, 24),
    "decoder_blocks.0.norm1.weight": torch.zeros(8),
    "decoder_pred.bias": torch.zeros(2),
}

FORMATS: dict[str, tuple[Any, EncoderRecipe, Weights, str, str]] = {
    # what is saved, the architecture, the encoder, which part, and what it is read as
    "mae.pth": ({"model": MAE, "args": argparse.Namespace(blr=1.5e-4, output_dir=pathlib.Path("x"))}, TINY, VIT, "", "MAE, 30 tensors, 5"),
    "dino.pth": (dino(student=OTHER, teacher=VIT), TINY, VIT, "teacher", "DINO teacher, 30 tensors, 2"),
    "dino_student.pth": (dino(student=VIT, teacher=OTHER), TINY, VIT, "student.backbone", "DINO student, 30 tensors, 2"),
    "dino_module.pth": (dino(student=VIT, teacher=OTHER), TINY, VIT, "student.module.backbone", "DINO student, 30 tensors, 2"),
    "ibot.pth": (dino(student=OTHER, teacher=IBOT), TINY, OTHER, "teacher.backbone", "iBOT teacher, 30 tensors, 3"),
    "dinov2.pth": (DINOv2, DINOV2, DINOv2, "", "DINOv2, 34 tensors, 1"),
    "dinov2_reg.pth": (WITH_REGISTERS, REGISTERS, WITH_REGISTERS, "", "DINOv2, 35 tensors, 1"),
    "dinov2_giant.pth": (GATED, SWIGLU, GATED, "", "timm, 34 tensors, 0"),
    "dinov2_training.pth": (
        {"model": under("student.backbone.", DINOv2) | under("teacher.backbone.", CHUNKED) | under("teacher.dino_head.", HEAD)},
        DINOV2, DINOv2, "teacher.backbone", "DINOv2 teacher, 34 tensors, 3",
    ),
    "mocov3.pth.tar": (
        {
            "epoch": 300, "arch": "vit_small", "optimizer": OPTIMIZER, "scaler": {"scale": torch.ones(1)},
            "state_dict": under("module.base_encoder.", OTHER | {"head.0.weight": torch.zeros(2)})
            | under("module.momentum_encoder.", VIT | {"head.0.weight": torch.zeros(2)})
            | under("module.predictor.", HEAD),
        },
        TINY, VIT, "momentum_encoder", "MoCo v3 momentum encoder, 30 tensors, 3",
    ),
    "ijepa.pth.tar": (
        {
            "encoder": under("module.", random_vit(class_token=False, seed=4)), "target_encoder": under("module.", IJEPA),
            "predictor": under("module.", {"predictor_pos_embed": torch.zeros(1)}), "opt": OPTIMIZER, "scaler": None, "lr": 1e-3,
        },
        WITHOUT_CLASS_TOKEN, IJEPA, "target_encoder", "I-JEPA target encoder, 29 tensors, 1",
    ),
    "msn.pth.tar": (
        {
            "encoder": under("module.", OTHER), "prototypes": torch.zeros(4, 24), "opt": OPTIMIZER,
            "target_encoder": under("module.", VIT | {"fc.fc1.weight": torch.zeros(2)}),
        },
        TINY, VIT, "target_encoder", "MSN target encoder, 30 tensors, 2",
    ),
    "solo.ckpt": (
        {
            "epoch": 1, "pytorch-lightning_version": "2.5", "optimizer_states": [OPTIMIZER], "callbacks": {"x": np.float64(0.5)},
            "hyper_parameters": collections.defaultdict(list, {"lr": np.float32(0.1), "path": pathlib.PureWindowsPath("c:/x")}),
            "state_dict": under("backbone.", VIT) | under("momentum_backbone.", OTHER) | under("projector.", HEAD)
            | under("classifier.", HEAD),
        },
        TINY, VIT, "backbone", "solo-learn backbone, 30 tensors, 4",
    ),
    "lightning.ckpt": ({"state_dict": under("model.", VIT), "loops": {}}, TINY, VIT, "", "timm, 30 tensors, 0"),
    "exported_last.pt": (VIT, TINY, VIT, "", "timm, 30 tensors, 0"),
    "compiled.pt": ({"model_state_dict": under("module._orig_mod.", VIT), "step": torch.tensor(3)}, TINY, VIT, "", "timm, 30 tensors, 1"),
    "net.bin": ({"net": VIT, "acc": np.float64(0.5)}, TINY, VIT, "", "timm, 30 tensors, 0"),
    "fsdp.pt": (under("_fsdp_wrapped_module.", VIT), TINY, VIT, "", "timm, 30 tensors, 0"),
    "ema.pth": ({"state_dict": OTHER, "state_dict_ema": VIT}, TINY, VIT, "state_dict_ema", "timm (averaged weights), 30 tensors, 0"),
    "deit3.pth": (
        {"model": {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for name, t in random_vit(scaled=True).items()}},
        DINOV2, random_vit(scaled=True), "", "timm, 34 tensors, 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_an_encoder_of_another_training_has_the_features_of_its_formulas(tmp_path: Path, name: str) -> None:
    content, architecture, weights, part, read_as = FORMATS[name]
    torch.save(content, tmp_path / name)
    heads = architecture.heads or 0
    assert_close(features(tmp_path / name, architecture, part), vit_tokens(weights, IMAGES, heads))
    for tensors in (read_tensors(tmp_path / name), read_shapes(tmp_path / name)):
        assert str(encoder_in(tensors, "here", part)) == f"read as: {read_as} left out"


@pytest.mark.parametrize("name", ["beit", "beit finetuned", "simmim", "data2vec"])
def test_beits_of_timm_are_fitted_by_timms_own_filter(name: str) -> None:
    weights = random_beit(shared=name != "beit finetuned")
    content, read_as = {
        "simmim": (
            under("model.encoder.", weights) | {"model.decoder.0.weight": torch.zeros(8, 24, 1, 1)},
            "SimMIM encoder",
        ),
        "data2vec": (under("model.", weights | {"lm_head.weight": torch.zeros(4)}), "BEiT"),
    }.get(name, (under("module.", weights), "BEiT"))
    found = encoder_in(content, "here")
    assert found.read_as == read_as
    assert {"mask_token"} <= {left.rpartition(".")[2] for left in found.left_out}
    model = beit(SIDE)
    fit(model, found.tensors, "here")
    assert_close(model.eval().forward_features(IMAGES), beit_tokens(weights, IMAGES))
    with torch.device("meta"):
        fit(beit(48), {name: tensor.to("meta") for name, tensor in found.tensors.items()}, "here")
    fit(larger := beit(48), found.tensors, "here")
    assert larger.eval().forward_features(torch.zeros(1, 3, 48, 48)).isfinite().all()


def beit(side: int) -> Any:
    sizes = {"img_size": side, "patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("beit_base_patch16_224", **sizes, num_classes=0, global_pool="token")


def dinov3(model: str = "vit_small_patch16_dinov3") -> Any:
    return timm.create_model(model, img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=2, num_classes=0)


def test_a_published_dinov3_is_fitted_by_timms_own_filter() -> None:
    weights, model = random_dinov3(), dinov3()
    found = encoder_in(weights, "here")
    assert str(found) == "read as: DINOv3, 34 tensors, 4 left out"
    fit(model, found.tensors, "here")
    assert_close(model.eval().forward_features(IMAGES), dinov3_tokens(weights, IMAGES))


def test_biases_of_a_dinov3_are_not_dropped_unless_they_are_zero() -> None:
    weights = random_dinov3()
    weights["blocks.1.attn.qkv.bias"][:64] = 0.5
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.bias is not zero.*qkvb"):
        fit(dinov3(), encoder_in(weights, "here").tensors, "here")


def test_weights_of_a_network_without_patches_are_found_by_the_names_of_timms_model() -> None:
    weights = timm.create_model("resnet18").state_dict()
    names = timm.create_model("resnet18", num_classes=0).state_dict()
    found = encoder_in(under("state_dict.module.", weights), "here", like=names)
    assert found.tensors.keys() == names.keys()
    assert found.left_out == ["state_dict.module.fc.weight", "state_dict.module.fc.bias"]
