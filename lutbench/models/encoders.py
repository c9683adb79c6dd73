"""Encoders are timm's models, parameter names included: made, asked for features, exported.

Plain Vision Transformers can be made in other sizes, pre-trained here, and fine-tuned in MAE's way. Every other model of timm that
gives features (Vision Transformers with more to them, EVA, BEiT, Swin, ConvNeXt, ResNet, ...) is taken as timm makes it.
"""

import inspect
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError, listed, nearest
from lutbench.files import write_sealed
from lutbench.models.preprocessing import IMAGENETS, Preprocessing
from lutbench.models.weights import save_weights
from lutbench.recipes.base import EncoderRecipe

Pool = Literal["class", "mean"]

TIMMS_NAMES = {"width": "embed_dim", "heads": "num_heads"}
"""What timm calls the sizes that a recipe gives under other names."""


def create_encoder(
    recipe: EncoderRecipe,
    image_size: int | None = None,
    drop_path: float = 0.0,
    *,
    classes: int = 0,
    pooled_norm: bool = False,
) -> nn.Module:
    """Return a model with timm's own initial weights: images in, no classifier unless ``classes``.

    A plain ViT has its final LayerNorm last; ``pooled_norm`` moves it behind the mean over patch tokens (timm's ``fc_norm``).
    Any other model has pooling, norms and classifier as timm makes them, and ``pooled_norm`` says nothing.

    Raises:
        UserError: if timm has no such model, it gives no features, or the sizes do not go together.
    """
    arguments = timm_arguments(recipe, image_size, classes=classes, pooled_norm=pooled_norm)
    if is_plain(recipe):
        arguments["drop_path_rate"] = drop_path
    elif drop_path:
        if not _takes(recipe.model, "drop_path_rate"):
            raise UserError(
                f"drop_path = {drop_path:g}: timm's {_timms(recipe.model)} {recipe.model} has no paths that could be dropped. "
                "Set drop_path = 0."
            )
        arguments["drop_path_rate"] = drop_path
    return timm.create_model(recipe.model, **arguments)


def create_vit(
    recipe: EncoderRecipe,
    image_size: int | None = None,
    drop_path: float = 0.0,
    *,
    classes: int = 0,
    pooled_norm: bool = False,
) -> VisionTransformer:
    """Return what :func:`create_encoder` does, of a plain ViT.

    Raises:
        UserError: also if the model is another, see :func:`geometry_of`.
    """
    geometry_of(recipe)
    encoder = create_encoder(recipe, image_size, drop_path, classes=classes, pooled_norm=pooled_norm)
    assert isinstance(encoder, VisionTransformer)
    return encoder


def timm_arguments(
    recipe: EncoderRecipe, image_size: int | None = None, *, classes: int = 0, pooled_norm: bool = False
) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model(recipe.model, ...)`` to get the model of :func:`create_encoder`."""
    image_size = image_size or recipe.image_size
    if not is_plain(recipe):
        if sizes := _own_sizes(recipe):
            raise UserError(
                f"{', '.join(sizes)}: these sizes are set of plain Vision Transformers, and {recipe.model} is timm's "
                f"{_timms(recipe.model)}, which has its own. Leave them out, or choose another model."
            )
        _check_side(recipe.model, image_size)
        return {**_size_argument(recipe.model, image_size), "num_classes": classes}
    geometry = geometry_of(recipe)
    patch_size, width, heads = geometry.patch_size, geometry.width, geometry.heads
    if image_size % patch_size:
        raise UserError(
            f"image_size = {image_size} is not a whole number of patches of patch_size = {patch_size}: "
            f"take {max(1, round(image_size / patch_size)) * patch_size}, or another patch_size."
        )
    if width % heads:
        raise UserError(f"width = {width} does not divide over heads = {heads}: change one of them.")
    return {
        "img_size": image_size,
        **{TIMMS_NAMES.get(name, name): value for name, value in _own_sizes(recipe).items()},
        "num_classes": classes,
        "global_pool": "token" if geometry.class_token and not pooled_norm else "avg",
        "fc_norm": pooled_norm,
    }


def encode(encoder: nn.Module, images: Tensor, pool: Pool) -> Tensor:
    """Return the features (B, D), float32, of ``images`` (B, 3, S, S): the class token, or the mean over the patches.

    Of a model that does not give tokens with a known number of prefix tokens, such as a hierarchical one, the mean is timm's own
    pooling with the norm that belongs to it: ``forward_head(..., pre_logits=True)``.

    Raises:
        UserError: if the class token is asked for and there is none, or timm pools in another way than by a mean.
    """
    model: Any = encoder
    if pool == "class" and not has_class_token(model):
        raise UserError('pool = "class": this encoder has no class token. Set pool = "mean".')
    found: Tensor = model.forward_features(images)
    prefix = getattr(model, "num_prefix_tokens", None)
    if isinstance(prefix, int) and found.ndim == 3:
        pooled = found[:, 0] if pool == "class" else found[:, prefix:].mean(1)
        features: Tensor = model.fc_norm(pooled) if hasattr(model, "fc_norm") else pooled
    elif pool == "mean" and (pooling := _own_pooling(model)) in AVERAGES:
        features = model.forward_head(found, pre_logits=True)
    else:
        raise UserError(
            f'pool = "{pool}": timm\'s {type(model).__name__} pools its features in another way'
            + (f" ({pooling})" if pool == "mean" and pooling else "")
            + ", so that it has no such features. Choose another model."
        )
    return features.float()


def has_class_token(encoder: nn.Module) -> bool:
    """Return whether the first token of an encoder's features is a class token."""
    return bool(getattr(encoder, "has_class_token", getattr(encoder, "cls_token", None) is not None))


AVERAGES = ("avg", "fast", "AdaptiveAvgPool2d")
"""timm's names of the mean over all positions."""


def _own_pooling(encoder: Any) -> str:
    """Return the name of the pooling that timm's classifier has of a model; empty if it does not say."""
    places = (encoder, getattr(encoder, "head", None))
    pooling = next((p for one in places if (p := getattr(one, "global_pool", None)) is not None), "")
    return pooling if isinstance(pooling, str) else getattr(pooling, "pool_type", type(pooling).__name__)


@lru_cache
def feature_width(recipe: EncoderRecipe, image_size: int | None = None, pool: Pool = "mean") -> int:
    """Return how many features :func:`encode` gives of an image, without computing any.

    Raises:
        UserError: as :func:`create_encoder` and :func:`encode`.
    """
    side = image_size or recipe.image_size
    with torch.device("meta"), torch.no_grad():
        return encode(create_encoder(recipe, side).eval(), torch.empty(1, 3, side, side), pool).shape[1]


def export_encoder(
    encoder: nn.Module,
    recipe: EncoderRecipe,
    folder: Path,
    *,
    image_size: int | None = None,
    name: str = "encoder",
    class_names: Sequence[str] = (),
    prepared: Preprocessing = IMAGENETS,
) -> str:
    """Write ``NAME.safetensors`` and its :class:`lutbench.models.export.Export`, ``NAME.json``; return the former's sha256.

    Serves a classifier of :func:`create_encoder` as well; its ``class_names`` are kept. Images are to be ``prepared`` so, and of
    ``image_size`` if that is not the recipe's; a plain ViT knows its own.

    Raises:
        UserError: if a weight is not finite, or on a full disk.
    """
    pooled_norm = False
    if isinstance(encoder, VisionTransformer) and is_plain(recipe):
        image_size, pooled_norm = encoder.patch_embed.img_size[0], not isinstance(encoder.fc_norm, nn.Identity)
    classes: Any = encoder.num_classes
    arguments = timm_arguments(recipe, image_size, classes=classes, pooled_norm=pooled_norm)
    sha256 = save_weights(encoder.state_dict(), folder / f"{name}.safetensors")
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    write_sealed(
        folder / f"{name}.json",
        {
            "load": f"timm.create_model({recipe.model!r}, {written}, checkpoint_path='{name}.safetensors')",
            "timm": timm.__version__,
            "model": recipe.model,
            "arguments": arguments,
            **({} if "img_size" in arguments else {"image_size": image_size or recipe.image_size}),
            "mean": list(prepared.mean),
            "std": list(prepared.std),
            "interpolation": prepared.interpolation,
            **({} if prepared.crop_pct is None else {"crop_pct": prepared.crop_pct}),
            "class_names": list(class_names),
            "sha256": sha256,
        },
    )
    return sha256


class Geometry(NamedTuple):
    """Sizes of a Vision Transformer."""

    patch_size: int
    width: int
    depth: int
    heads: int
    class_token: bool


def geometry_of(recipe: EncoderRecipe) -> Geometry:
    """Sizes of the plain ViT that a recipe describes, without making it.

    Raises:
        UserError: if timm has no such model, or it is not a plain ViT.
    """
    found = _timms(recipe.model)
    if isinstance(found, str):
        raise UserError(
            f"model = {recipe.model!r}: expected a plain Vision Transformer, found timm's {found}. "
            "Choose one such as vit_base_patch16_224."
        )
    return Geometry(**found._asdict() | _own_sizes(recipe))


def is_plain(recipe: EncoderRecipe) -> bool:
    """Return whether a recipe describes a plain ViT: one of blocks in a row, over patches of one size.

    Raises:
        UserError: if timm has no such model.
    """
    return isinstance(_timms(recipe.model), Geometry)


def _own_sizes(recipe: EncoderRecipe) -> dict[str, int]:
    """Return the sizes that a recipe gives itself; the others are those of timm's model."""
    return recipe.model_dump(include={"patch_size", "width", "depth", "heads"}, exclude_none=True)


@lru_cache
def _timms(name: str) -> Geometry | str:
    """Return the geometry of a model as timm defines it; of one that is no plain ViT, what it is."""
    model = _without_memory(name)
    if type(model) is not VisionTransformer:  # a distilled one is another, with two class tokens and two heads
        return type(model).__name__
    if not isinstance(model.patch_embed, PatchEmbed):
        return f"Vision Transformer with {type(model.patch_embed).__name__} in place of patches"
    if not hasattr(model.blocks[0], "attn"):
        return f"Vision Transformer whose blocks are {type(model.blocks[0]).__name__}, of parallel parts"
    heads: int = model.blocks[0].get_submodule("attn").num_heads  # type: ignore[assignment]
    patch_size: int = model.patch_embed.patch_size[0]
    return Geometry(patch_size, model.embed_dim, len(model.blocks), heads, model.has_class_token)


def _without_memory(name: str, **arguments: Any) -> nn.Module:
    """Return a model of timm on the meta device."""
    check_name(name)
    with torch.device("meta"):
        try:
            return timm.create_model(name, **arguments)
        except Exception as error:  # timm's models have conditions of their own, and exceptions of every kind for them
            asked = "".join(f" with {key} = {value}" for key, value in arguments.items())
            raise UserError(
                f"model = {name!r}: timm cannot make it{asked} ({_line(error)}). Choose another model, or another image_size."
            ) from error


@lru_cache
def _takes(name: str, argument: str) -> bool:
    """Return whether a model of timm is made with an argument."""
    kinds = type(_without_memory(name)).__mro__
    return any(argument in inspect.signature(kind.__init__).parameters for kind in kinds)  # type: ignore[misc]


def _size_argument(name: str, side: int) -> dict[str, Any]:
    """Return the argument that makes a model of timm for images of ``side``; none of one that takes any size."""
    return {"img_size": side} if _takes(name, "img_size") else {}


def _check_side(name: str, side: int) -> None:
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
            f"image_size = {side}: timm's {_timms(name)} {name} does not take images of {side} x {side} ({problem}). {remedy}"
        )


@lru_cache
def _problem(name: str, side: int) -> str:
    """Return why a model of timm gives no features of images (3, side, side); empty if it does."""
    try:
        with torch.device("meta"), torch.no_grad():
            model: Any = timm.create_model(name, num_classes=0, **_size_argument(name, side)).eval()
            if side % (_patch_size(model) or 1):
                return f"that is not a whole number of patches of {_patch_size(model)}"
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
