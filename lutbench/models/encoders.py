"""Create encoders, extract features and export weights. Encoders are timm models with timm's parameter names.

Plain Vision Transformers can have other sizes, can be pre-trained here, and are fine-tuned as in MAE. Every other timm model that
returns features (other Vision Transformers, EVA, BEiT, Swin, ConvNeXt, ResNet, ...) is used as timm defines it.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.files import write_sealed
from lutbench.models.meta import shapes_only
from lutbench.models.preprocessing import IMAGENETS, Preprocessing
from lutbench.models.timm_models import Geometry, check_side, pools_before_norm, size_argument, takes, timms_own
from lutbench.models.weights import save_weights
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.downstream import Pool

TIMMS_NAMES = {"width": "embed_dim", "heads": "num_heads"}
"""What timm calls the sizes that a recipe gives under other names."""


def create_encoder(
    recipe: EncoderRecipe,
    image_size: int | None = None,
    drop_path: float = 0.0,
    *,
    classes: int = 0,
    pooled_norm: bool | None = None,
) -> nn.Module:
    """Return a model with timm's initial weights; without a classifier unless ``classes`` is given.

    A plain ViT ends with its final LayerNorm; ``pooled_norm`` moves it after the mean over patch tokens (timm's ``fc_norm``).
    Other models have pooling, norms and classifier as in timm, unless ``pooled_norm`` is False: then a norm that timm
    applies after the mean is applied to the tokens, as in pre-training (BEiT).

    Raises:
        UserError: if timm has no such model, it returns no features, or the sizes are inconsistent.
    """
    arguments = timm_arguments(recipe, image_size, classes=classes, pooled_norm=pooled_norm)
    if is_plain(recipe) or takes(recipe.model, "drop_path_rate"):
        arguments["drop_path_rate"] = drop_path  # 0 too: of some models, such as Swin, timm's default is not 0
    elif drop_path:
        raise UserError(
            f"drop_path = {drop_path:g}: timm's {timms_own(recipe.model)} {recipe.model} does not support drop path. "
            "Set drop_path = 0."
        )
    return timm.create_model(recipe.model, **arguments)


def create_vit(
    recipe: EncoderRecipe,
    image_size: int | None = None,
    drop_path: float = 0.0,
    *,
    classes: int = 0,
    pooled_norm: bool | None = None,
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
    recipe: EncoderRecipe, image_size: int | None = None, *, classes: int = 0, pooled_norm: bool | None = None
) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model(recipe.model, ...)`` to get the model of :func:`create_encoder`."""
    image_size = image_size or recipe.image_size
    if not is_plain(recipe):
        if sizes := _own_sizes(recipe):
            raise UserError(
                f"{', '.join(sizes)}: these sizes can only be set for plain Vision Transformers, but {recipe.model} is timm's "
                f"{timms_own(recipe.model)}. Remove them, or choose another model."
            )
        check_side(recipe.model, image_size)
        before = {"global_pool": "token"} if pooled_norm is False and pools_before_norm(recipe.model) else {}
        return {**size_argument(recipe.model, image_size), "num_classes": classes, **before}
    geometry = geometry_of(recipe)
    patch_size, width, heads = geometry.patch_size, geometry.width, geometry.heads
    if image_size % patch_size:
        raise UserError(
            f"image_size = {image_size} is not a multiple of patch_size = {patch_size}: "
            f"use {max(1, round(image_size / patch_size)) * patch_size}, or another patch_size."
        )
    if width % heads:
        raise UserError(f"width = {width} is not divisible by heads = {heads}: change one of them.")
    return {
        "img_size": image_size,
        **{TIMMS_NAMES.get(name, name): value for name, value in _own_sizes(recipe).items()},
        "num_classes": classes,
        "global_pool": "token" if geometry.class_token and not pooled_norm else "avg",
        "fc_norm": bool(pooled_norm),
    }


def encode(encoder: nn.Module, images: Tensor, pool: Pool) -> Tensor:
    """Return the features (B, D), float32, of ``images`` (B, 3, S, S): the class token, or the mean over the patches.

    For a model without a known number of prefix tokens, such as a hierarchical one, the mean is timm's own pooling with its norm:
    ``forward_head(..., pre_logits=True)``.

    Raises:
        UserError: if the class token is requested but there is none, or timm does not pool by a mean.
    """
    model: Any = encoder
    if pool == "class":
        _require_class_token(has_class_token(model))
    found: Tensor = model.forward_features(images)
    prefix = getattr(model, "num_prefix_tokens", None)
    if isinstance(prefix, int) and found.ndim == 3:
        pooled = found[:, 0] if pool == "class" else found[:, prefix:].mean(1)
        features: Tensor = model.fc_norm(pooled) if hasattr(model, "fc_norm") else pooled
    elif pool == "mean" and (pooling := _own_pooling(model)) in AVERAGES:
        features = model.forward_head(found, pre_logits=True)
    else:
        raise UserError(
            f'pool = "{pool}": timm\'s {type(model).__name__} does not provide these features, as it pools in another way'
            + (f" ({pooling})" if pool == "mean" and pooling else "")
            + ". Choose another model."
        )
    return features.float()


def _require_class_token(present: bool) -> None:
    if not present:
        raise UserError('pool = "class": this encoder has no class token. Set pool = "mean".')


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
    """Return the number of features that :func:`encode` returns per image, without computing any.

    Raises:
        UserError: as :func:`create_encoder` and :func:`encode`.
    """
    side = image_size or recipe.image_size
    if is_plain(recipe):  # known without a pass
        timm_arguments(recipe, side)
        if pool == "class":
            _require_class_token(geometry_of(recipe).class_token)
        return geometry_of(recipe).width
    with shapes_only(), torch.no_grad():
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
    """Write ``NAME.safetensors`` and its description ``NAME.json`` (:class:`lutbench.models.export.Export`); return the former's sha256.

    Also for classifiers of :func:`create_encoder`, with their ``class_names``. ``prepared`` is the preprocessing of images;
    ``image_size`` is the input size if it differs from the recipe's (not needed for a plain ViT).

    Raises:
        UserError: if a weight is not finite, or on a full disk.
    """
    pooled_norm = None
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


def geometry_of(recipe: EncoderRecipe) -> Geometry:
    """Sizes of the plain ViT that a recipe describes, without making it.

    Raises:
        UserError: if timm has no such model, or it is not a plain ViT.
    """
    found = timms_own(recipe.model)
    if isinstance(found, str):
        raise UserError(
            f"model = {recipe.model!r}: expected a plain Vision Transformer, found timm's {found}. "
            "Choose a model such as vit_base_patch16_224."
        )
    return Geometry(**found._asdict() | _own_sizes(recipe))


def is_plain(recipe: EncoderRecipe) -> bool:
    """Return whether a recipe describes a plain ViT: a sequence of standard blocks over patches of one size.

    Raises:
        UserError: if timm has no such model.
    """
    return isinstance(timms_own(recipe.model), Geometry)


def _own_sizes(recipe: EncoderRecipe) -> dict[str, int]:
    """Return the sizes that a recipe gives itself; the others are those of timm's model."""
    return recipe.model_dump(include={"patch_size", "width", "depth", "heads"}, exclude_none=True)
