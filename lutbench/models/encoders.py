"""Encoders are timm's Vision Transformers, parameter names included: made, asked for features, exported."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
from timm.layers.patch_embed import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError, listed, nearest
from lutbench.files import write_sealed
from lutbench.models.meta import shapes_only
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
    geometry, image_size = geometry_of(recipe), image_size or recipe.image_size
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


def encode(encoder: VisionTransformer, images: Tensor, pool: Pool) -> Tensor:
    """Return the features (B, D), float32, of ``images`` (B, 3, S, S): the class token, or the mean over the patches.

    Raises:
        UserError: if the class token is asked for and there is none.
    """
    if pool == "class" and not encoder.has_class_token:
        raise UserError('pool = "class": this encoder has no class token. Set pool = "mean".')
    tokens = encoder.forward_features(images)
    pooled = tokens[:, 0] if pool == "class" else tokens[:, encoder.num_prefix_tokens :].mean(1)
    features: Tensor = encoder.fc_norm(pooled)
    return features.float()


def export_encoder(
    encoder: VisionTransformer,
    recipe: EncoderRecipe,
    folder: Path,
    *,
    name: str = "encoder",
    class_names: Sequence[str] = (),
    prepared: Preprocessing = IMAGENETS,
) -> str:
    """Write ``NAME.safetensors`` and its :class:`lutbench.models.export.Export`, ``NAME.json``; return the former's sha256.

    Serves a classifier of :func:`create_encoder` as well; its ``class_names`` are kept. Images are to be ``prepared`` so.

    Raises:
        UserError: if a weight is not finite, or on a full disk.
    """
    pooled_norm = not isinstance(encoder.fc_norm, nn.Identity)
    arguments = timm_arguments(
        recipe, encoder.patch_embed.img_size[0], classes=encoder.num_classes, pooled_norm=pooled_norm
    )
    sha256 = save_weights(encoder.state_dict(), folder / f"{name}.safetensors")
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    write_sealed(
        folder / f"{name}.json",
        {
            "load": f"timm.create_model({recipe.model!r}, {written}, checkpoint_path='{name}.safetensors')",
            "timm": timm.__version__,
            "model": recipe.model,
            "arguments": arguments,
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
    """Sizes of the encoder that a recipe describes, without making it.

    Raises:
        UserError: if timm has no such model, or it is not a plain ViT.
    """
    return Geometry(**_timms_geometry(recipe.model)._asdict() | _own_sizes(recipe))


def _own_sizes(recipe: EncoderRecipe) -> dict[str, int]:
    """Return the sizes that a recipe gives itself; the others are those of timm's model."""
    return recipe.model_dump(include={"patch_size", "width", "depth", "heads"}, exclude_none=True)


@lru_cache
def _timms_geometry(name: str) -> Geometry:
    """Return the geometry of a model as timm defines it."""
    check_name(name)
    with shapes_only():
        model = timm.create_model(name)
    if type(model) is not VisionTransformer:  # a distilled one is another, with two class tokens and two heads
        found = type(model).__name__
    elif not isinstance(model.patch_embed, PatchEmbed):
        found = f"Vision Transformer with {type(model.patch_embed).__name__} in place of patches"
    elif not hasattr(model.blocks[0], "attn"):
        found = f"Vision Transformer whose blocks are {type(model.blocks[0]).__name__}, of parallel parts"
    else:
        heads: int = model.blocks[0].get_submodule("attn").num_heads  # type: ignore[assignment]
        patch_size: int = model.patch_embed.patch_size[0]
        return Geometry(patch_size, model.embed_dim, len(model.blocks), heads, model.has_class_token)
    raise UserError(
        f"model = {name!r}: expected a plain Vision Transformer, found timm's {found}. "
        "Choose one such as vit_base_patch16_224."
    )


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
