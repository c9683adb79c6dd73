"""Encoders are timm's Vision Transformers, parameter names included: made, asked for features, exported."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.patch_embed import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError, listed, nearest
from lutbench.files import write_json
from lutbench.models.weights import save_weights
from lutbench.recipes import EncoderRecipe

Pool = Literal["class", "mean"]


def create_encoder(
    recipe: EncoderRecipe,
    image_size: int | None = None,
    drop_path: float = 0.0,
    *,
    classes: int = 0,
    pooled_norm: bool = False,
) -> VisionTransformer:
    """Return a ViT with timm's own initial weights: tokens in, final LayerNorm last, no classifier unless ``classes``.

    ``pooled_norm`` moves the final LayerNorm behind the mean over patch tokens (timm's ``fc_norm``).

    Raises:
        UserError: if timm has no such model, it is not a plain ViT, or the sizes do not go together.
    """
    arguments = timm_arguments(recipe, image_size, classes=classes, pooled_norm=pooled_norm)
    encoder = timm.create_model(recipe.model, drop_path_rate=drop_path, **arguments)
    assert isinstance(encoder, VisionTransformer)
    return encoder


def timm_arguments(
    recipe: EncoderRecipe, image_size: int | None = None, *, classes: int = 0, pooled_norm: bool = False
) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model(recipe.model, ...)`` to get the model of :func:`create_encoder`."""
    geometry = _checked_geometry(recipe, image_size or recipe.image_size)
    sizes = {
        "patch_size": recipe.patch_size,
        "embed_dim": recipe.width,
        "depth": recipe.depth,
        "num_heads": recipe.heads,
    }
    return {
        "img_size": image_size or recipe.image_size,
        **{name: value for name, value in sizes.items() if value is not None},
        "num_classes": classes,
        "global_pool": "token" if geometry.class_token and not pooled_norm else "avg",
        "fc_norm": pooled_norm,
    }


def encode(encoder: VisionTransformer, images: Tensor, pool: Pool) -> Tensor:
    """Return the features (B, D), float32, of ``images`` (B, 3, S, S).

    Raises:
        UserError: if the class token is asked for and there is none.
    """
    tokens = encoder.forward_features(images)
    if pool == "class":
        if not encoder.has_class_token:
            raise UserError('pool = "class": this encoder has no class token. Set pool = "mean".')
        pooled = class_token(tokens)
    else:
        pooled = patch_mean(tokens, encoder.num_prefix_tokens)
    features: Tensor = encoder.fc_norm(pooled)
    return features.float()


def class_token(tokens: Tensor) -> Tensor:
    """Return the class token (B, D) of ``tokens`` (B, 1 + N, D)."""
    return tokens[:, 0]


def patch_mean(tokens: Tensor, prefix: int = 1) -> Tensor:
    """Return the mean (B, D) over the patches of ``tokens`` (B, prefix + N, D), class and register tokens left out."""
    return tokens[:, prefix:].mean(1)


def export_encoder(
    encoder: VisionTransformer,
    recipe: EncoderRecipe,
    folder: Path,
    *,
    name: str = "encoder",
    class_names: Sequence[str] = (),
) -> str:
    """Write ``NAME.safetensors``, and ``NAME.json`` that says how to load it with timm; return the former's sha256.

    Serves a classifier of :func:`create_encoder` as well; its ``class_names`` are kept.

    Raises:
        UserError: on a full disk.
    """
    pooled_norm = not isinstance(encoder.fc_norm, nn.Identity)
    arguments = timm_arguments(
        recipe, encoder.patch_embed.img_size[0], classes=encoder.num_classes, pooled_norm=pooled_norm
    )
    sha256 = save_weights(encoder.state_dict(), folder / f"{name}.safetensors")
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    write_json(
        folder / f"{name}.json",
        {
            "load": f"timm.create_model({recipe.model!r}, {written}, checkpoint_path='{name}.safetensors')",
            "model": recipe.model,
            "arguments": arguments,
            "mean": list(IMAGENET_DEFAULT_MEAN),
            "std": list(IMAGENET_DEFAULT_STD),
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
    """Sizes of the encoder that a recipe describes, without making it.

    Raises:
        UserError: if timm has no such model, or it is not a plain ViT.
    """
    own = _own_geometry(recipe.model)
    return Geometry(
        recipe.patch_size or own.patch_size,
        recipe.width or own.width,
        recipe.depth or own.depth,
        recipe.heads or own.heads,
        own.class_token,
    )


@lru_cache
def _own_geometry(name: str) -> Geometry:
    """Return the geometry of a model as timm defines it.

    Raises:
        UserError: if there is no such model or it is not a plain ViT.
    """
    check_name(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    if not isinstance(model, VisionTransformer) or not isinstance(model.patch_embed, PatchEmbed):
        raise UserError(
            f"model = {name!r}: expected a plain Vision Transformer, found timm's {type(model).__name__}. "
            "Choose one such as vit_base_patch16_224."
        )
    heads: int = model.blocks[0].get_submodule("attn").num_heads  # type: ignore[assignment]
    return Geometry(model.patch_embed.patch_size[0], model.embed_dim, len(model.blocks), heads, model.has_class_token)


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


def _checked_geometry(recipe: EncoderRecipe, image_size: int) -> Geometry:
    geometry = geometry_of(recipe)
    patch_size, width, heads = geometry.patch_size, geometry.width, geometry.heads
    if image_size % patch_size:
        raise UserError(
            f"image_size = {image_size} is not a whole number of patches of patch_size = {patch_size}: "
            f"take {max(1, round(image_size / patch_size)) * patch_size}, or another patch_size."
        )
    if width % heads:
        raise UserError(f"width = {width} does not divide over heads = {heads}: change one of them.")
    return geometry
