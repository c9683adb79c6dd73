"""Where the weights of an encoder come from: a run, timm, anybody's checkpoint, or nowhere."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor, nn

from lutbench.errors import UserError, listed
from lutbench.models.encoders import create_encoder, is_plain, timm_arguments
from lutbench.models.meta import shapes_only
from lutbench.models.timm_models import check_name
from lutbench.models.weights import pooled_norm, read_shapes, read_weights
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.downstream import EncoderSource
from lutbench.train.randomness import RngStream, seeded

if TYPE_CHECKING:
    from lutbench.run import Run

SCRATCH = 100
"""The last number of the key under which the weights of an encoder without a source are drawn."""

LEFT_OUT = re.compile(
    r"(module\.)?(decoder[._].*|mask_token|(head|head_dist|projector|predictor|fc_norm|attn_pool)\..*)"
)
"""What a checkpoint may hold besides the encoder: a decoder, and heads with their norm and pooling."""

PREFIX = r"((?:module\.|encoder\.|backbone\.)*)"
"""What training scripts put before names."""

PREFIXES = re.compile(rf"{PREFIX}patch_embed\.proj\.weight")
"""The key that every ViT has, behind what training scripts put before it."""

TABLE = "relative_position_bias_table"
"""What timm calls a table of biases by the distance of two positions of a window, as in BEiT and Swin."""


def load_encoder(
    source: EncoderSource,
    weights: Path | None = None,
    sha256: str | None = None,
    *,
    image_size: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return the encoder with the weights of its source, for images of ``image_size``.

    ``weights`` is the file of a run's export or of a checkpoint, ``sha256`` what it must be. Position embeddings are
    resized where the grid differs. Where the last norm of a plain ViT comes after pooling (``fc_norm``, as in classifiers), it
    stays there: :func:`encode` applies it.

    Raises:
        UserError: if the weights cannot be had, or do not fit name by name and shape by shape.
    """
    recipe = source.architecture
    timm_arguments(recipe, image_size)  # refuses what cannot be built before anything is fetched or read
    if source.kind == "scratch":
        with seeded(RngStream.WEIGHTS, seed, SCRATCH):
            return create_encoder(recipe, image_size)
    if source.kind == "timm":
        where = f"timm's weights of {recipe.model}"
        tensors = pretrained_model(recipe.model).state_dict()
    else:
        assert weights is not None
        where = str(weights)
        tensors = read_weights(weights, sha256)
    return _encoder_with(tensors, where, recipe, image_size)


def _encoder_with(
    tensors: Mapping[str, Tensor], where: str, recipe: EncoderRecipe, image_size: int | None
) -> nn.Module:
    if is_plain(recipe):
        tensors = _encoder_part(tensors, where)
        encoder = create_encoder(recipe, image_size, pooled_norm=pooled_norm(tensors))
    else:
        encoder = create_encoder(recipe, image_size)
        tensors = _part_like(encoder, tensors, where)
    fit(encoder, tensors, where)
    return encoder


def check_encoder_weights(run: "Run[Any]", image_size: int | None) -> None:
    """Check, by names and shapes alone, the weights of timm or of the user's file that a run starts from.

    Raises:
        UserError: if timm has none, the file is absent or is no checkpoint, or they do not fit the encoder.
    """
    recipe = run.recipe.encoder.architecture
    with shapes_only():
        if run.recipe.encoder.kind == "timm":
            check_pretrained(recipe.model)
            tensors = timm.create_model(recipe.model).state_dict()
            _encoder_with(tensors, f"timm's weights of {recipe.model}", recipe, image_size)
        elif run.recipe.encoder.kind == "checkpoint":
            assert run.weights is not None
            _encoder_with(read_shapes(run.weights), str(run.weights), recipe, image_size)


def encoder_of(run: "Run[Any]", image_size: int | None) -> nn.Module:
    """Return the encoder that a run starts from, for images of ``image_size``.

    Raises:
        UserError: if its weights cannot be had, are not those of the run's identity, or do not fit.
    """
    return load_encoder(run.recipe.encoder, run.weights, run.weights_sha256, image_size=image_size, seed=run.seed)


def fit(model: nn.Module, tensors: Mapping[str, Tensor], where: str, fresh: Iterable[str] = ()) -> None:
    """Load ``tensors`` into ``model``, strictly, with what :data:`LEFT_OUT` names and timm's classifier left out.

    Only the position embedding, and tables of biases by relative position, may have another shape: the part that belongs to the
    grid is resized. Parameters named in ``fresh`` keep the values that they have.

    Raises:
        UserError: listing what is missing, what nobody asked for, and what has another shape.
    """
    expected = model.state_dict()
    heads = _heads(model)
    given = {
        name: t
        for name, t in tensors.items()
        if name in expected or not (LEFT_OUT.fullmatch(name) or name.startswith(heads))
    }
    if "pos_embed" in given and "pos_embed" in expected:
        given["pos_embed"] = _resized(given["pos_embed"], model)
    for name in given.keys() & expected.keys():
        if name.endswith(f".{TABLE}"):
            given[name] = _resized_table(
                given[name], expected[name], model.get_submodule(name.removesuffix(f".{TABLE}"))
            )
    given |= {name: expected[name] for name in fresh}
    if problems := misfits(expected, given, "model"):
        raise UserError(
            f"{where}: the weights do not fit the encoder. {problems}. "
            "Name the architecture that they belong to, or give its weights."
        )
    model.load_state_dict(given)  # which converts half precision


def misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], model: str) -> str:
    """Return what ``given`` lacks, has beside what the ``model`` takes, or has in another shape or as whole numbers; empty if it fits."""
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    problems = [f"missing: {listed(missing)}"] if missing else []
    problems += [f"not part of the {model}: {listed(unknown)}"] if unknown else []
    problems += [
        f"{listed([name])}: expected {tuple(expected[name].shape)}, found {tuple(given[name].shape)}"
        for name in sorted(expected.keys() & given.keys())
        if expected[name].shape != given[name].shape
    ][:5]
    problems += [
        f"{name}: expected floating-point numbers, found {str(given[name].dtype).removeprefix('torch.')}"
        for name in sorted(expected.keys() & given.keys())
        if expected[name].is_floating_point() and not given[name].is_floating_point()
    ][:5]
    return "; ".join(problems)


def _encoder_part(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return ``tensors`` under timm's names: what training scripts put before them removed."""
    found = [match for name in tensors if (match := PREFIXES.fullmatch(name))]
    if len(found) != 1:
        raise UserError(
            f"{where}: expected the weights of one Vision Transformer under timm's names (patch_embed.proj.weight, "
            f"blocks.0.attn.qkv.weight, ...), found {len(found)}. The keys begin with {listed(tensors, 4)}."
        )
    prefix = found[0][1]
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) or not LEFT_OUT.fullmatch(name)
    }


def _part_like(encoder: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return ``tensors`` under timm's names of an encoder that is no plain ViT: what training scripts put before them removed."""
    first = next(iter(encoder.state_dict()))
    found = [match for name in tensors if (match := re.fullmatch(f"{PREFIX}{re.escape(first)}", name))]
    if len(found) != 1:
        raise UserError(
            f"{where}: expected the weights of one {type(encoder).__name__} under timm's names ({first}, ...), found {len(found)}. "
            f"The keys begin with {listed(tensors, 4)}."
        )
    prefix, heads = found[0][1], _heads(encoder)
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) or not (LEFT_OUT.fullmatch(name) or name.startswith(heads))
    }


def _heads(model: Any) -> tuple[str, ...]:
    """Return what the names of a timm model's classifiers begin with."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))


def _resized_table(table: Tensor, expected: Tensor, attention: Any) -> Tensor:
    """Return a table of biases ((2 h - 1) (2 w - 1) + extra, H) for the window of ``attention``; as it is where heads differ."""
    if table.shape == expected.shape or table.ndim != 2 or table.shape[1] != expected.shape[1]:
        return table
    if table.is_meta:
        return expected
    resized: Tensor = resize_rel_pos_bias_table(table.float(), attention.window_size, tuple(expected.shape))
    return resized


def _resized(position: Tensor, model: Any) -> Tensor:
    """Return ``position`` (1, prefix + n, D) for the model's grid; as it is where it cannot come from a square grid."""
    grid = getattr(model.patch_embed, "grid_size", None) if hasattr(model, "patch_embed") else None
    if grid is None or not hasattr(model, "num_prefix_tokens"):
        return position
    prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    patches = position.shape[1] - prefix if position.ndim == 3 else 0
    if patches < 1 or int(patches**0.5) ** 2 != patches or not position.is_floating_point():
        return position
    resized: Tensor = resample_abs_pos_embed(position.float(), list(grid), num_prefix_tokens=prefix)
    return resized


def check_pretrained(name: str) -> None:
    """Check that timm has weights of a model.

    Raises:
        UserError: if it has no such model, or no weights of it.
    """
    check_name(name)
    if not timm.is_model_pretrained(name):
        raise UserError(
            f"model = {name!r}: timm has no pre-trained weights for it. Choose another, or give a checkpoint."
        )


def pretrained_model(name: str, **arguments: Any) -> nn.Module:
    """Return a model of timm with its weights.

    Raises:
        UserError: if timm has none, or they are not on this machine and cannot be fetched.
    """
    check_pretrained(name)
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except OSError as error:
        raise UserError(
            f"The weights of {name} are not on this machine, and the Hugging Face Hub could not be reached "
            f"({type(error).__name__}). Connect once, or on a connected machine run "
            f'python -c "import timm; timm.create_model({name!r}, pretrained=True)" '
            "and copy its Hugging Face cache (HF_HOME) here."
        ) from error
