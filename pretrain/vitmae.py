"""Write a pre-trained encoder and its decoder for Hugging Face transformers: ViTMAE, or ViT without a stored decoder.

This does not need transformers: names and settings are those of its models on the Hub, which every version reads. ViTMAE computes the same
as MAE here: the same patches in the same order for the same noise, norms with epsilon 1e-6, positions from the weights.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lutbench.errors import listed
from lutbench.models.export import Export
from lutbench.models.hub import ExportedModel
from lutbench.models.weights import read_weights
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.run_files import read_finished

BLOCK = (
    (r"norm1\.(weight|bias)", r"layernorm_before.\1"),
    (r"attn\.(query|key|value)\.(weight|bias)", r"attention.attention.\1.\2"),
    (r"attn\.proj\.(weight|bias)", r"attention.output.dense.\1"),
    (r"norm2\.(weight|bias)", r"layernorm_after.\1"),
    (r"mlp\.fc1\.(weight|bias)", r"intermediate.dense.\1"),
    (r"mlp\.fc2\.(weight|bias)", r"output.dense.\1"),
)
"""timm's names of what is in a block, with queries, keys and values apart, and transformers'."""

ENCODER = (
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"norm\.(weight|bias)", r"layernorm.\1"),
)
DECODER = (
    (r"embed\.(weight|bias)", r"decoder.decoder_embed.\1"),
    (r"mask_token", "decoder.mask_token"),
    (r"pos_embed", "decoder.decoder_pos_embed"),
    (r"blocks\.(\d+)\.", r"decoder.decoder_layers.\1."),
    (r"norm\.(weight|bias)", r"decoder.decoder_norm.\1"),
    (r"predict\.(weight|bias)", r"decoder.decoder_pred.\1"),
)
"""Names outside the blocks, and what a block's begin with."""

BICUBIC = 3
"""Pillow's number of the filter, which transformers writes into preprocessor_config.json."""


def write_for_transformers(
    run_folder: Path, recipe: PretrainRecipe, exported: ExportedModel, target: Path
) -> tuple[str, str]:
    """Write a model of transformers' own below ``target``; return its class, and a line about it in which ``{}`` is the folder.

    It is ``ViTMAEForPreTraining`` in ``vitmae/``, or ``ViTModel`` in ``vit/`` if the run in ``run_folder`` kept no decoder, or has none of MAE's: each
    with ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``. For an encoder that transformers' ViT does not
    compute there is none, and the line says why.

    Raises:
        UserError: if the decoder is not the one that the run left.
    """
    encoder, description = exported.model, exported.description
    if reason := unlike_vit(encoder):
        return "", f"No model of transformers' own, but AutoModel of timm's: {reason}."
    kept = read_finished(run_folder).files if recipe.framework == "mae" else {}
    sha256 = kept.get("decoder.safetensors")
    decoder = read_weights(run_folder / "decoder.safetensors", sha256) if sha256 else {}
    kind, prefix, name = ("ViTMAEForPreTraining", "vit.", "vitmae") if decoder else ("ViTModel", "", "vit")
    parts = (split(encoder.state_dict()), ENCODER, prefix), (split(decoder), DECODER, "")
    renamed = {before + new_name(ours, table): tensor for part, table, before in parts for ours, tensor in part.items()}
    side = description.side
    config = {
        "architectures": [kind],
        "model_type": "vit_mae" if decoder else "vit",
        **_sizes(encoder),
        "image_size": side,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if decoder:
        config |= {
            "decoder_hidden_size": recipe.decoder_width,
            "decoder_num_hidden_layers": recipe.decoder_depth,
            "decoder_num_attention_heads": recipe.decoder_heads,
            "decoder_intermediate_size": decoder["blocks.0.mlp.fc1.weight"].shape[0],
            "mask_ratio": recipe.mask_ratio,
            "norm_pix_loss": recipe.normalise_target,
        }
    folder = target / name
    folder.mkdir()
    save_file(
        {key: tensor.contiguous() for key, tensor in renamed.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _preprocessor(description, side, exported.crop_pct))
    return kind, f"transformers.{kind}.from_pretrained('{{}}/{name}')"


def unlike_vit(encoder: nn.Module) -> str:
    """Return what an encoder has that transformers' ViT has not, a sentence; empty if it computes the same."""
    unknown = [name for name in split(encoder.state_dict()) if not new_name(name, ENCODER)]
    norms = {module.eps for module in encoder.modules() if isinstance(module, nn.LayerNorm)}
    activations = [module for module in encoder.modules() if re.search("GELU|SiLU|ReLU|Tanh", type(module).__name__)]
    others = {type(module).__name__ for module in activations if type(module).__name__ != "GELU"} | {
        f"GELU approximated by {module.approximate}"
        for module in activations
        if isinstance(module, nn.GELU) and module.approximate != "none"
    }
    if unknown:
        return f"transformers' ViT has no place for {listed(unknown, 3)}"
    if "blocks.0.attn.qkv.bias" not in encoder.state_dict():
        return "transformers' ViTMAE has biases of queries, keys and values, and this encoder has none"
    if norms != {1e-6} or others:
        return f"its norms have epsilon {sorted(norms)}, its activations are {sorted(others) or 'GELU'}; MAE's are 1e-6 and GELU"
    return ""


def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` with every ``attn.qkv`` as ``attn.query``, ``attn.key`` and ``attn.value``, which lie one after the other in it."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = ("query", "key", "value") if ".attn.qkv." in name else ("qkv",)
        found |= {
            name.replace(".qkv.", f".{part}."): piece
            for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True)
        }
    return found


def new_name(name: str, table: Sequence[tuple[str, str]]) -> str:
    """Return what transformers calls the tensor ``name`` of :func:`split`; empty if it has no such thing."""
    block = re.match(r"blocks\.\d+\.", name)
    if block is None:
        return _renamed(name, table)
    inner = _renamed(name.removeprefix(block[0]), BLOCK)
    return _renamed(block[0], table) + inner if inner else ""


def _renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    return next((m.expand(template) for pattern, template in table if (m := re.fullmatch(pattern, name))), "")


def _sizes(encoder: Any) -> dict[str, Any]:
    """Return the sizes of a ViT of timm, as transformers calls them."""
    return {
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.blocks[0].attn.num_heads,
        "intermediate_size": encoder.blocks[0].mlp.fc1.out_features,
        "patch_size": encoder.patch_embed.patch_size[0],
    }


def _preprocessor(description: Export, side: int, crop_pct: float) -> dict[str, Any]:
    """Return how images are prepared in evaluation: the short side resized, and the centre cropped."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": math.floor(side / crop_pct + 1e-6)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": description.mean,
        "image_std": description.std,
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
