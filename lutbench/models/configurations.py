"""Read the configuration file beside weights, for what shapes do not show: number of heads, activation and epsilon."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from lutbench.errors import UserError
from lutbench.files import read_json
from lutbench.models.encoders import geometry_of, is_plain
from lutbench.models.export import export_of
from lutbench.models.timm_models import Geometry, timms_own
from lutbench.models.weight_files import sha256_of

KINDS: dict[str, type | tuple[type, ...]] = {
    "architecture": str,
    "num_attention_heads": int,
    "image_size": int,
    "hidden_act": str,
    "layer_norm_eps": (int, float),
}
"""The entries that are read from a configuration, by Hugging Face's names (for the model, timm's); other types are ignored."""

EPSILONS = (1e-12, 1e-6, 1e-5)
"""Epsilons of layer norms that differ in no result, see :mod:`lutbench.models.converters`."""


def configuration_beside(weights: Path, hash_of: Callable[[Path], str] = sha256_of) -> dict[str, Any]:
    """Return the configuration of the encoder from a file beside the weights, by the names of :data:`KINDS`, with the file as ``origin``.

    The file is the export that this suite wrote beside the weights, or the ``config.json`` of Hugging Face or timm in the folder. If
    timm's names a plain ViT, its number of heads is included. ``hash_of`` returns the sha256 of a file.

    Raises:
        UserError: if the export is damaged or belongs to other weights, or ``config.json`` is not JSON.
    """
    if weights.is_file() and (export := export_of(weights, hash_of)):
        plain = {"num_attention_heads": geometry_of(export.recipe).heads} if is_plain(export.recipe) else {}
        origin = weights.with_suffix(".json").name
        return {"origin": origin, "architecture": export.model, "image_size": export.side, **plain}
    file = (weights if weights.is_dir() else weights.parent) / "config.json"
    content = read_json(file) if file.is_file() else None
    if not isinstance(content, dict):
        return {}
    said = {"origin": file.name, **_timms(content), **content}
    return {
        name: value
        for name, value in said.items()
        if isinstance(value, KINDS.get(name, str if name == "origin" else ())) and not isinstance(value, bool) and value
    }


def _timms(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what timm's ``config.json`` says, by Hugging Face's names; empty if it is not timm's."""
    name = content.get("architecture")
    if not isinstance(name, str):
        return {}
    arguments, pretrained = (
        found if isinstance(found := content.get(key), dict) else {} for key in ("model_args", "pretrained_cfg")
    )
    own = timms_own(name.partition(".")[0]) if timm.is_model(name) else ""
    size = pretrained.get("input_size") or content.get("input_size")
    return {
        "num_attention_heads": arguments.get("num_heads", own.heads if isinstance(own, Geometry) else None),
        "image_size": arguments.get("img_size") or (size[-1] if isinstance(size, list) and size else None),
        "hidden_act": arguments.get("act_layer"),
    }


def check_activation(said: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that an encoder with such tensors, under timm's names, has in timm the activation and epsilon that its configuration says.

    Raises:
        UserError: with both, if not.
    """
    timms = _activations(shapes)
    if (activation := said.get("hidden_act", timms[0])) not in timms:
        raise UserError(
            f"{_beside(said)} has hidden_act = {activation!r}, but timm's encoders with these tensors use {timms[0]!r}, so they would compute "
            "something else. Use weights of another encoder."
        )
    if (epsilon := said.get("layer_norm_eps", EPSILONS[0])) not in EPSILONS:
        raise UserError(
            f"{_beside(said)} has layer_norm_eps = {epsilon:g}, but timm's encoders use 1e-06, so they would compute something else. "
            "Use weights of another encoder."
        )


def check_configuration(said: Mapping[str, Any], encoder: nn.Module, name: str) -> None:
    """Check that an ``encoder``, timm's ``name``, computes what the configuration beside its weights says.

    Raises:
        UserError: as :func:`check_activation`, and if the number of heads is another, with both.
    """
    check_activation(said, {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()})
    attention = getattr(next(iter(getattr(encoder, "blocks", ())), None), "attn", None)
    heads, theirs = getattr(attention, "num_heads", None), said.get("num_attention_heads")
    if heads and theirs and heads != theirs:
        raise UserError(
            f"{_beside(said)} has {theirs} heads, but the chosen architecture {name} has {heads}. Set heads = {theirs} in its [encoder.NAME] "
            f"(lutbench add: --heads {theirs}), or choose a model with {theirs} heads. If the file belongs to other weights, move it away."
        )


def _beside(said: Mapping[str, Any]) -> str:
    return f"The {said['origin']} beside the weights" if "origin" in said else "The configuration beside the weights"


def _activations(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return Hugging Face's names of the activation that timm's model with these tensors has."""
    first, second = (shapes.get(f"blocks.0.mlp.{layer}.weight", (0, 0)) for layer in ("fc1", "fc2"))
    if "blocks.0.mlp.fc1_g.weight" in shapes:
        return "silu", "swish"
    if "layer1.0.conv1.weight" in shapes:
        return ("relu",)
    # DINOv2's SwiGLU, for which Hugging Face ignores hidden_act
    if first[0] and first[0] == 2 * second[-1]:
        return "silu", "swish", "gelu"
    return ("gelu",)
