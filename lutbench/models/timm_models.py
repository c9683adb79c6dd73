"""Inspect timm models on the meta device, without memory: type, sizes, arguments and input sizes."""

import inspect
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError, listed, nearest
from lutbench.models.meta import shapes_only
from lutbench.models.weights import pooled_norm


class Geometry(NamedTuple):
    """Sizes of a Vision Transformer."""

    patch_size: int
    width: int
    depth: int
    heads: int
    class_token: bool


@lru_cache
def timms_own(name: str) -> Geometry | str:
    """Return the geometry of a model as timm defines it; of one that is no plain ViT, what it is."""
    model = _without_memory(name)
    if type(model) is not VisionTransformer:  # a distilled one is another, with two class tokens and two heads
        return type(model).__name__
    if not isinstance(model.patch_embed, PatchEmbed):
        return f"Vision Transformer with {type(model.patch_embed).__name__} instead of patches"

    if not hasattr(model.blocks[0], "attn"):
        return f"Vision Transformer whose blocks are {type(model.blocks[0]).__name__}, of parallel parts"
    heads: int = model.blocks[0].get_submodule("attn").num_heads  # type: ignore[assignment]
    patch_size: int = model.patch_embed.patch_size[0]
    return Geometry(patch_size, model.embed_dim, len(model.blocks), heads, model.has_class_token)


def _without_memory(name: str, **arguments: Any) -> nn.Module:
    """Return a model of timm on the meta device."""
    check_name(name)
    with shapes_only():
        try:
            return timm.create_model(name, **arguments)
        except Exception as error:  # timm's models have conditions of their own, and exceptions of every kind for them
            asked = "".join(f" with {key} = {value}" for key, value in arguments.items())
            raise UserError(
                f"model = {name!r}: timm cannot build it{asked} ({_line(error)}). Choose another model, or another image_size."
            ) from error


@lru_cache
def takes(name: str, argument: str) -> bool:
    """Return whether a model of timm is made with an argument."""
    kinds = type(_without_memory(name)).__mro__
    return any(argument in inspect.signature(kind.__init__).parameters for kind in kinds)  # type: ignore[misc]


def size_argument(name: str, side: int) -> dict[str, Any]:
    """Return the argument that makes a model of timm for images of ``side``; none of one that takes any size."""
    return {"img_size": side} if takes(name, "img_size") else {}


def check_side(name: str, side: int) -> None:
    """Check that a model of timm takes images (3, side, side), by a pass without memory.

    Raises:
        UserError: if not, with a side near it that goes.
    """
    if problem := _problem(name, side):
        model: Any = _without_memory(name)
        steps = {_patch_size(model) or 32, 32}
        near = sorted(
            {side // step * step + more for step in steps for more in (0, step)} - {0}, key=lambda one: abs(one - side)
        )
        own: int = (model.pretrained_cfg or {}).get("input_size", (3, 224, 224))[-1]
        goes = next((one for one in (*near, own) if not _problem(name, one)), None)
        remedy = "Choose another model." if goes is None else f"Set image_size to {goes}, or choose another model."
        raise UserError(
            f"image_size = {side}: timm's {timms_own(name)} {name} does not accept images of {side} x {side} ({problem}). {remedy}"
        )


@lru_cache
def _problem(name: str, side: int) -> str:
    """Return why a model of timm gives no features of images (3, side, side); empty if it does."""
    try:
        with shapes_only(), torch.no_grad():
            model: Any = timm.create_model(name, num_classes=0, **size_argument(name, side)).eval()
            if side % (_patch_size(model) or 1):
                return f"not a multiple of the patch size {_patch_size(model)}"
            features = model.forward_features(torch.empty(2, 3, side, side))
        return "" if isinstance(features, Tensor) else f"its features are a {type(features).__name__}"
    except Exception as error:  # whatever the model's own code trips over
        return _line(error)


def _patch_size(model: Any) -> int:
    """Return the side of the patches that a model embeds; 0 of one that embeds none."""
    size = getattr(getattr(model, "patch_embed", None), "patch_size", 0)
    return int(size[0] if isinstance(size, tuple | list) else size)


def _line(error: Exception) -> str:
    """Return the first line of an exception's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def check_name(name: str) -> None:
    """Check that timm has a model of this name and, if the name has one, with this tag.

    Raises:
        UserError: with the nearest names, if it has not.
    """
    if not timm.is_model(name):
        raise UserError(
            f"model = {name!r}: timm {timm.__version__} has no such model.{nearest(name, timm.list_models())}"
        )
    if "." in name and not timm.is_model_pretrained(name):
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise UserError(
            f"model = {name!r}: timm has no such weights.{nearest(name, tags)} Known: {listed(tags) or 'none'}."
        )


def classifiers(model: Any) -> tuple[str, ...]:
    """Return what the names of a timm model's classifiers begin with."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))


@lru_cache
def pools_before_norm(name: str) -> bool:
    """Return whether a model of timm has its last norm behind the mean over patches (``fc_norm``)."""
    return pooled_norm(_without_memory(name).state_dict())
