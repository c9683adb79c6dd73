"""Convert tensor names of other libraries to timm's: one table of renamings and one function per library.

Converters are pure functions of named tensors. They change no values except the class token of models with registers, and also
work on the meta device. Unknown names stay unchanged, as do tensors that cannot be merged: loading is strict and reports them.

The epsilon of layer norms is not stored with weights. torchvision, DINOv2, MSN and DINOv3 use the same as timm. Hugging Face's
ViT, ViTMAE, BEiT and I-JEPA use 1e-12 and timm 1e-6, with which all of these models were originally trained. For inputs of variance v,
outputs differ by a factor of 1 - 5e-7 / v, which is below the precision of bfloat16 if v is above 3e-4.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Renaming = tuple[tuple[str, str], ...]
"""Patterns of names with timm's names; the first pattern that matches the whole name is used."""


class Dialect(NamedTuple):
    """How a library names the tensors of an encoder."""

    name: str
    """Name in messages."""
    patch_embedding: str
    """Suffix of the name of the patch embedding's weight; the text before it is the encoder's prefix."""
    convert: Callable[[Mapping[str, Tensor]], Tensors]
    """Converts the encoder's tensors, named without the prefix, to timm's names."""
    left_out: re.Pattern[str]
    """Pattern of whole names that may accompany the encoder but are not part of it, without the prefix if they have it."""
    also: re.Pattern[str] = re.compile("(?!)")
    """Pattern of whole names that are part of the encoder although they do not have its prefix; mostly none."""


HUGGING_FACE: Renaming = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)", r"patch_embed.proj.\1"),
    (r"blocks\.(\d+)\.(?:layernorm_before|norm1)\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"blocks\.(\d+)\.(?:layernorm_after|norm2)\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (r"blocks\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"blocks\.(\d+)\.attention\.(?:attention\.)?(?:query|q_proj)\.(weight|bias)", r"blocks.\1.attn.query.\2"),
    (r"blocks\.(\d+)\.attention\.(?:attention\.)?(?:key|k_proj)\.(weight|bias)", r"blocks.\1.attn.key.\2"),
    (r"blocks\.(\d+)\.attention\.(?:attention\.)?(?:value|v_proj)\.(weight|bias)", r"blocks.\1.attn.value.\2"),
    (r"blocks\.(\d+)\.(?:intermediate\.dense|mlp\.weights_in)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"blocks\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"blocks\.(\d+)\.lambda_([12])", r"blocks.\1.gamma_\2"),
    (
        r"blocks\.(\d+)\.(?:attention\.attention\.)?relative_position_bias\.relative_position_bias_table",
        r"blocks.\1.attn.relative_position_bias_table",
    ),
    (
        r"(?:encoder\.relative_position_bias|shared_position_bias)\.relative_position_bias_table",
        "rel_pos_bias",
    ),
    (r"(?:layernorm|norm)\.(weight|bias)", r"norm.\1"),
    (r"pooler\.layernorm\.(weight|bias)", r"fc_norm.\1"),
)
"""Names in Hugging Face's files, in which blocks are called ``blocks.N`` already, and those of its models in memory since version
5: ViT, DeiT, ViTMAE, ViTMSN, I-JEPA, DINOv2 with and without registers, BEiT, Data2VecVision and DINOv3."""

HUGGING_FACES_BLOCKS = re.compile(r"(?:encoder\.layer|layers|(?:model\.)?layer)\.(\d+\.)")

TORCHVISION: Renaming = (
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(weight|bias)", r"norm.\1"),
)
"""Names of torchvision's VisionTransformer, ``linear_1`` and ``linear_2`` those of before version 0.12."""

OPENMMLAB: Renaming = (
    (r"patch_embed\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"layers\.(\d+)\.ln([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (r"layers\.(\d+)\.attn\.attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (r"layers\.(\d+)\.attn\.attn\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.attn\.gamma1\.weight", r"blocks.\1.gamma_1"),
    (r"layers\.(\d+)\.ffn\.gamma2\.weight", r"blocks.\1.gamma_2"),
    (r"layers\.(\d+)\.ffn\.(?:layers\.0\.0|w12)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.ffn\.(?:layers\.1|w3)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"layers\.(\d+\.(?:attn\..+|gamma_[12]))", r"blocks.\1"),
    (r"ln1\.(weight|bias)", r"norm.\1"),
    (r"ln2\.(weight|bias)", r"fc_norm.\1"),
)
"""Names of mmpretrain's VisionTransformer, MAEViT and BEiTViT, and of MMSegmentation's VisionTransformer, MAE and BEiT."""


def timm_names(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return ``tensors`` unchanged: MAE, DINO, MoCo v3 and many others use timm's names."""
    return dict(tensors)


def huggingface_vit(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of a ViT of Hugging Face, or of one of the models that it has like it, under timm's names.

    With register tokens, the class token's position embedding is added to the class token: timm's have none of it. A relative
    position bias that blocks share, each of timm's has for itself.
    """
    found = _of_huggingface(tensors)
    for name in [name for name in found if ".mlp.gate_proj." in name]:  # a SwiGLU of DINOv2, which files have as one
        _join(found, (name, name.replace(".gate_proj.", ".up_proj.")), name.replace(".gate_proj.", ".fc1."))
    without_class_position(found)
    bias_in_every_block(found, "rel_pos_bias")
    return found


def huggingface_dinov3(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of Hugging Face's DINOv3ViT under the names of timm's Eva, which has its architecture."""
    found = {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name): t for name, t in _of_huggingface(tensors).items()}
    gated = any(".mlp.gate_proj." in name for name in found)
    calls = {".mlp.gate_proj.": ".mlp.fc1_g.", ".mlp.up_proj.": ".mlp.fc1_x." if gated else ".mlp.fc1."}
    return {re.sub(r"\.mlp\.\w+_proj\.", lambda part: calls[part[0]], name): t for name, t in found.items()}


def torchvision_vit(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of torchvision's VisionTransformer under timm's names; its qkv is one already."""
    return {_renamed(name, TORCHVISION): tensor for name, tensor in tensors.items()}


def openmmlab_vit(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of mmpretrain's and MMSegmentation's Vision Transformers under timm's names.

    MMSegmentation's MAE backbone has relative position biases, which are zero where its weights come from a plain ViT: zeros are
    left out, and on the meta device all of them. Its VisionTransformer has no bias in the patch embedding: here it is zero.
    """
    found = {_renamed(name, OPENMMLAB): tensor for name, tensor in tensors.items()}
    if not any(name.endswith(".attn.q_bias") for name in found):  # a plain ViT, and no BEiT
        found = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): tensor for name, tensor in found.items()}
        found = {name: t for name, t in found.items() if not (name.endswith(TABLE) and (t.is_meta or not t.any()))}
        if "patch_embed.proj.weight" in found:
            weight = found["patch_embed.proj.weight"]
            found.setdefault("patch_embed.proj.bias", weight.new_zeros(len(weight)))
    return found


def without_class_position(found: Tensors) -> None:
    """Add the position embedding of the class token to it where there are registers: timm's models have none of it then."""
    if {"reg_token", "cls_token", "pos_embed"} <= found.keys():
        token, position = found["cls_token"], found["pos_embed"]
        if position.ndim == 3 and token.shape == position[:, :1].shape:
            found["cls_token"] = token.float() + position[:, :1].float()
            found["pos_embed"] = position[:, 1:]


def bias_in_every_block(found: Tensors, name: str) -> None:
    """Give every block the relative position biases ``name`` that all share, if there are any, as timm's have them."""
    if (table := found.pop(name, None)) is not None:
        found |= {block.replace(".norm1.weight", TABLE): table for block in found if block.endswith(".norm1.weight")}


TABLE = ".attn.relative_position_bias_table"

DIALECTS = (
    Dialect(
        "timm",
        "patch_embed.proj.weight",
        timm_names,
        re.compile(r"decoder[._].*|mask_token|(head|head_dist|projector|predictor|fc_norm|attn_pool)\..*"),
    ),
    Dialect(
        "Hugging Face ViT",
        "embeddings.patch_embeddings.projection.weight",
        huggingface_vit,
        re.compile(
            r"embeddings\.mask_token|pooler\.dense\..*|(.*\.)?relative_position_index|"
            r"(decoder|classifier|cls_classifier|distillation_classifier|lm_head|decode_head|auxiliary_head|fpn[1-4])\..*"
        ),
        also=re.compile(r"layernorm\.(weight|bias)"),  # BeitForMaskedImageModeling has it beside ``beit.``
    ),
    Dialect(
        "Hugging Face DINOv3",
        "embeddings.patch_embeddings.weight",
        huggingface_dinov3,
        re.compile(r"embeddings\.mask_token|rope_embeddings\..*|classifier\..*"),
    ),
    Dialect("torchvision ViT", "conv_proj.weight", torchvision_vit, re.compile(r"heads\..*")),
    Dialect(
        "mmpretrain or MMSegmentation ViT",
        "patch_embed.projection.weight",
        openmmlab_vit,
        re.compile(
            r"mask_token|(.*\.)?relative_position_index|"
            r"(neck|head|decode_head|auxiliary_head|data_preprocessor|target_generator)\..*"
        ),
    ),
)  # fmt: skip
"""The dialects that can be read. No weight's name ends as two of them say."""


def _renamed(name: str, renaming: Renaming) -> str:
    for pattern, template in renaming:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return name


def _of_huggingface(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return ``tensors`` renamed, with query, key and value as one; of biases of query and value alone each stays, as in BEiT."""
    named = {HUGGING_FACES_BLOCKS.sub(r"blocks.\1", name, count=1): tensor for name, tensor in tensors.items()}
    found = {_renamed(name, HUGGING_FACE): tensor for name, tensor in named.items()}
    for name in [name for name in found if name.endswith(".attn.query.weight")]:
        before = name.removesuffix("query.weight")
        for kind in ("weight", "bias"):
            _join(found, tuple(f"{before}{part}.{kind}" for part in ("query", "key", "value")), f"{before}qkv.{kind}")
        for part in ("query", "value"):
            if f"{before}{part}.bias" in found and f"{before}key.bias" not in found:
                found[f"{before}{part[0]}_bias"] = found.pop(f"{before}{part}.bias")
    return found


def _join(found: Tensors, parts: tuple[str, ...], name: str) -> None:
    """Replace the tensors of the names ``parts`` by one under ``name``, row below row, if all are there and of one shape."""
    if all(part in found and found[part].ndim and found[part].shape == found[parts[0]].shape for part in parts):
        found[name] = torch.cat([found.pop(part) for part in parts])
