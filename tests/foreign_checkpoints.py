"""Checkpoints of trainings elsewhere: their encoders' random weights, and what is around them."""

import argparse
import pathlib
from pathlib import Path
from typing import Any

import torch
from foreign_vits import PATCH, SIDE, Weights, random_vit
from torch import Tensor

from lutbench.models.pretrained import load_encoder
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.downstream import EncoderSource

IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
TINY = EncoderRecipe(model="vit_tiny_patch16_224", image_size=SIDE, patch_size=PATCH, width=24, depth=2, heads=2)
WITHOUT_CLASS_TOKEN = TINY.model_copy(update={"model": "vit_base_patch16_gap_224"})
DINOV2 = TINY.model_copy(update={"model": "vit_small_patch14_dinov2"})
REGISTERS = TINY.model_copy(update={"model": "vit_small_patch14_reg4_dinov2"})
SWIGLU = TINY.model_copy(update={"model": "vit_giant_patch14_dinov2", "width": 48})

VIT = random_vit()
OTHER = random_vit(seed=9)
HEAD = {"mlp.0.weight": torch.zeros(8, 24), "last_layer.weight_v": torch.zeros(9, 8)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}


def under(prefix: str, tensors: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def dino(**networks: Weights) -> dict[str, Any]:
    """A checkpoint of DINO's and iBOT's trainers."""
    student, teacher = networks["student"], networks["teacher"]
    return {
        "student": under("module.backbone.", student) | under("module.head.", HEAD),
        "teacher": under("backbone.", teacher) | under("head.", HEAD),
        "optimizer": OPTIMIZER,
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", output_dir=pathlib.Path("/there")),
        "dino_loss": {"center": torch.zeros(1, 9)},
    }


def source(architecture: EncoderRecipe = TINY, part: str = "") -> EncoderSource:
    return EncoderSource.model_validate({"architecture": architecture, "kind": "checkpoint", "part": part})


def features(path: Path, architecture: EncoderRecipe, part: str = "") -> Tensor:
    return load_encoder(source(architecture, part), path).eval().forward_features(IMAGES)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1
    assert torch.allclose(found, expected, atol=2e-5), (found - expected).abs().max()


DINOv2 = random_vit(scaled=True) | {"mask_token": torch.zeros(1, 24)}
WITH_REGISTERS = DINOv2 | {"register_tokens": torch.randn(1, 4, 24, generator=torch.Generator().manual_seed(5))}
GATED = {
    name.replace("fc1", "w12").replace("fc2", "w3"): tensor[:, :128] if name.endswith("fc2.weight") else tensor
    for name, tensor in random_vit(48, hidden=256, scaled=True).items()
}
CHUNKED = {
    name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for name, t in DINOv2.items()
}
IJEPA = random_vit(class_token=False)
