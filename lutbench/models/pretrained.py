"""Load the weights of an encoder: from a run, from timm, from any checkpoint, or random."""

import re
from collections.abc import Collection, Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.configurations import check_configuration, configuration_beside
from lutbench.models.encoders import create_encoder, timm_arguments
from lutbench.models.fitting import filtered, misfits, sizes_that_differ
from lutbench.models.formats import ForeignEncoder, encoder_in
from lutbench.models.licences import licence_of, timms_licence
from lutbench.models.meta import shapes_only
from lutbench.models.preprocessing import IMAGENETS, preprocessing_of
from lutbench.models.timm_models import check_name, classifiers
from lutbench.models.weights import check_kinds, check_values, pooled_norm, read_shapes, read_tensors, read_weights
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
"""Parts of checkpoints that are not loaded: decoders, and heads with their norm and pooling."""


def load_encoder(
    source: EncoderSource,
    weights: Path | None = None,
    sha256: str | None = None,
    *,
    image_size: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return the encoder with the weights of its source, for images of ``image_size``.

    ``weights`` is the file of a run's export, or the file or folder of a checkpoint; ``sha256`` is its expected hash. Position embeddings are
    interpolated if the patch grid differs. If the last norm comes after pooling (``fc_norm``, as in classifiers), it stays
    there: :func:`encode` applies it.

    Raises:
        UserError: if the weights are not available, or names or shapes do not match.
    """
    recipe = source.architecture
    timm_arguments(recipe, image_size)  # refuses what cannot be built before anything is fetched or read
    if source.kind == "scratch":
        with seeded(RngStream.WEIGHTS, seed, SCRATCH):
            return create_encoder(recipe, image_size)
    if source.kind == "timm":
        return _encoder_with(
            pretrained_model(recipe.model).state_dict(), f"timm's weights of {recipe.model}", recipe, image_size
        )
    assert weights is not None
    if source.kind == "run":
        return _encoder_with(read_weights(weights, sha256), str(weights), recipe, image_size)
    found = _found_in(read_tensors(weights, sha256), weights, source, image_size)
    check_values(found.tensors, str(weights))
    return _encoder_with(found.tensors, str(weights), recipe, image_size)


def _found_in(
    tensors: Mapping[str, Tensor], weights: Path, source: EncoderSource, image_size: int | None
) -> ForeignEncoder:
    """Return the encoder of a checkpoint, by its names and, of networks that are no ViT, by those of timm's model."""
    with shapes_only():
        like = create_encoder(source.architecture, image_size).state_dict()
    return encoder_in(tensors, str(weights), source.part, like)


def _encoder_with(
    tensors: Mapping[str, Tensor], where: str, recipe: EncoderRecipe, image_size: int | None
) -> nn.Module:
    last = "norm.weight" in tensors and "fc_norm.weight" not in tensors
    encoder = create_encoder(recipe, image_size, pooled_norm=False if last else pooled_norm(tensors) or None)
    fit(encoder, tensors, where)
    return encoder


def fitted(
    found: ForeignEncoder, where: str, recipe: EncoderRecipe, image_size: int | None = None
) -> tuple[nn.Module, ForeignEncoder]:
    """Return the encoder with what was found in a checkpoint, and that without what the encoder does not take, and how it was resized.

    Raises:
        UserError: if it does not fit, or tensors are quantised or sparse.
    """
    check_kinds(found.tensors, where)
    encoder = _encoder_with(found.tensors, where, recipe, image_size)
    resized = _resizing(encoder, found.tensors)
    return encoder, found.without(unused(encoder, found.tensors))._replace(resized=resized)


def _resizing(encoder: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return from which grid of patches to which a position embedding is resized, in words; empty if it is not."""
    given, own = tensors.get("pos_embed"), getattr(encoder, "pos_embed", None)
    if given is None or own is None or given.shape == own.shape:
        return ""
    height, width = encoder.patch_embed.grid_size
    side = isqrt(given.shape[1] - (own.shape[1] - height * width))
    return f"position embedding resized from {side} x {side} patches (assumed to be square) to {height} x {width}"


def check_encoder_weights(run: "Run[Any]", image_size: int | None) -> None:
    """Check, by names and shapes alone, the weights of timm or of the user's file that a run starts from, and note what they are.

    Raises:
        UserError: if timm has none, the file is absent or is no checkpoint, they do not fit the encoder, or what lies beside them says that it
            computes otherwise.
    """
    source = run.recipe.encoder
    recipe, note = source.architecture, run.workspace.note
    with shapes_only():
        if source.kind == "timm":
            check_pretrained(recipe.model)
            where = f"timm's weights of {recipe.model}"
            _encoder_with(timm.create_model(recipe.model).state_dict(), where, recipe, image_size)
            if licence := timms_licence(recipe.model):
                note(f"{where}, licence: {licence}.")
        elif source.kind == "checkpoint":
            assert run.weights is not None
            found = _found_in(read_shapes(run.weights), run.weights, source, image_size)
            encoder, found = fitted(found, str(run.weights), recipe, image_size)
            check_configuration(configuration_beside(run.weights, run.hash_of), encoder, recipe.model)
            licence = licence_of(run.weights)
            note(f"{run.weights}, {found}{f', licence: {licence}' if licence else ''}.")
            prepared = preprocessing_of(source, run.weights, run.hash_of)
            if prepared.origin != IMAGENETS.origin:  # which is told where it begins to matter
                note(f"method.{run.planned.method}: images are {prepared}.")


def encoder_of(run: "Run[Any]", image_size: int | None) -> nn.Module:
    """Return the encoder that a run starts from, for images of ``image_size``.

    Raises:
        UserError: if its weights cannot be had, are not those of the run's identity, or do not fit.
    """
    return load_encoder(run.recipe.encoder, run.weights, run.weights_sha256, image_size=image_size, seed=run.seed)


def fit(model: nn.Module, tensors: Mapping[str, Tensor], where: str, fresh: Iterable[str] = ()) -> None:
    """Load ``tensors`` into ``model``, strictly, except for :data:`LEFT_OUT` and timm's classifier.

    Only the position embedding may have another shape: its grid part is interpolated. Parameters in ``fresh`` keep their values. For
    models other than plain ViTs, timm's own ``checkpoint_filter_fn`` first renames and resizes what it can, such as the relative position
    biases of BEiT and the published DINOv3.

    Raises:
        UserError: listing missing, unexpected and wrongly shaped tensors, differences in size first.
    """
    expected = model.state_dict()
    left_out = set(unused(model, tensors))
    given = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    if differing := sizes_that_differ(expected, given):
        raise UserError(
            f"{where}: the weights do not fit the encoder {_name_of(model)}. {differing}. "
            "Set the architecture that the weights belong to, or use other weights."
        )
    if not isinstance(model, VisionTransformer):
        given = filtered(model, given, where)
    elif "pos_embed" in given and "pos_embed" in expected:
        given["pos_embed"] = _resized(given["pos_embed"], model, where)
    given |= {name: expected[name] for name in fresh}
    if problems := misfits(expected, given, "model"):
        raise UserError(
            f"{where}: the weights do not fit the encoder. {problems}. "
            "Set the architecture that the weights belong to, or use other weights."
        )
    model.load_state_dict(given)  # which converts half precision


def unused(model: nn.Module, tensors: Collection[str]) -> list[str]:
    """Return the names of what weights may hold besides a model, and this one has not: :data:`LEFT_OUT`, and timm's classifier."""
    expected, heads = model.state_dict(), classifiers(model)
    return [name for name in tensors if name not in expected and (LEFT_OUT.fullmatch(name) or name.startswith(heads))]


def _name_of(model: nn.Module) -> str:
    """Return timm's name of a model's architecture."""
    return str((getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__)


def _resized(position: Tensor, model: VisionTransformer, where: str) -> Tensor:
    """Return ``position`` (1, prefix + n, D) for the model's grid.

    Raises:
        UserError: if it has another number of patches than the grid, and comes from no square one.
    """
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    grid = model.patch_embed.grid_size
    if position.ndim != 3 or not position.is_floating_point():
        return position  # which is told as it is
    patches = position.shape[1] - prefix
    if patches < 1 or (int(patches**0.5) ** 2 != patches and patches != grid[0] * grid[1]):
        beside = f"and {prefix} prefix tokens" if prefix else "and no prefix tokens"
        raise UserError(
            f"{where}: the weights do not fit the encoder {_name_of(model)}. They have a position embedding of {position.shape[1]} tokens, the "
            f"encoder one of {grid[0]} x {grid[1]} patches {beside}; only square grids can be resized. Set the architecture that the weights "
            "belong to, or use other weights."
        )
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
            f"model = {name!r}: timm has no pre-trained weights for it. Choose another model, or set a checkpoint."
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
            f"({type(error).__name__}). Connect to the network once, or run on a connected machine "
            f'python -c "import timm; timm.create_model({name!r}, pretrained=True)" '
            "and copy its Hugging Face cache (HF_HOME) here."
        ) from error
