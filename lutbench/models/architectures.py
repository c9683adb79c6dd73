"""Find the timm model that fits given weights, from the names and shapes of the tensors alone.

Candidates are first built with one block on the meta device, which takes milliseconds; the remaining ones are built completely.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import isqrt
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from lutbench.errors import UserError, listed
from lutbench.models.configurations import check_activation
from lutbench.models.encoders import is_plain
from lutbench.models.fitting import misfits, sizes_that_differ
from lutbench.models.timm_models import timms_own
from lutbench.recipes.base import EncoderRecipe

Shapes = dict[str, tuple[int, ...]]


class _Family(NamedTuple):
    """A family of timm models."""

    modules: tuple[str, ...]
    """Modules of ``timm.models`` that define them."""
    names: str
    """Pattern of their names; excludes models that compute something else with the same shapes."""
    mark: str
    """Pattern of a tensor name that occurs in all of them and in no earlier family."""
    shallow: dict[str, Any]
    """Arguments that build a model with one block, or one block per stage."""


TRANSFORMERS = (
    _Family(("beit",), r".*", r"(blocks\.0\.attn|rel_pos_bias)\.relative_position_bias_table", {"depth": 1}),
    _Family(
        ("eva",),
        r".*_dinov3(_qkvb)?|eva02_[a-z]+_patch\d+_\d+|eva_giant_patch\d+_\d+",
        r"blocks\.0\.(gamma_1|attn\.(q_bias|q_proj\.weight))",
        {"depth": 1},
    ),
    _Family(
        ("vision_transformer", "deit"),
        r"vit_[a-z0-9]+_patch\d+(_reg\d+)?(_gap)?(_\d+|_dinov2)|deit3?_[a-z_]+_patch\d+_\d+",
        r"blocks\.0\.attn\.qkv\.weight",
        {"depth": 1},
    ),
)
"""Families whose sizes can be set: patch, width, depth, heads and input."""

OTHERS = (
    _Family(("swin_transformer",), r"swin_.*", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table", {"depths": (1,) * 4}),
    _Family(("convnext",), r"convnext.*", r"stages\.0\.blocks\.0\.conv_dw\.weight", {"depths": (1,) * 4}),
    _Family(("resnet",), r".*", r"layer1\.0\.conv1\.weight", {"layers": (1,) * 4}),
)  # fmt: skip
"""Families of which timm's models are taken as they are."""

HEADS = re.compile(r"(head|head_dist|fc|fc_norm|norm)\..*")
"""Classifiers and last norms: where the latter stands is how an encoder is pooled, and no size of it."""

LATER = re.compile(r"\b(blocks|layer[1-4])\.(?!0\.)\d+\.")
"""What is part of a block that is not the first, of the encoder or of a stage."""

ON_GRID = re.compile(r"pos_embed|(.*\.)?relative_position_bias_table")
"""Tensors with a row for every place of a grid of patches, which is resized to others."""


def architecture_of(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, read_as: str = ""
) -> tuple[EncoderRecipe, list[str]]:
    """Return the model and sizes that fit weights with timm's names, and sentences about assumptions.

    Tensors may be on the meta device. ``config`` is the configuration beside the weights, see
    :func:`lutbench.models.configurations.configuration_beside`: its ``num_attention_heads``, ``image_size`` and ``architecture`` are used
    where shapes are ambiguous. ``read_as`` is the detected format (:class:`lutbench.models.formats.ForeignEncoder`). A timm model with
    exactly these sizes is preferred.

    Raises:
        UserError: with the shapes found, if no model fits, or the number of heads is unknown; if the configuration describes something
            that timm's models do not compute.
    """
    config = {"read_as": read_as, **(config or {})}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not HEADS.fullmatch(name)}
    check_activation(config, shapes)
    nearest = ""
    for family in (*TRANSFORMERS, *OTHERS):
        if any(re.fullmatch(family.mark, name) for name in shapes):
            found = (_sized if family in TRANSFORMERS else _exact)(family, shapes, config)
            if found is not None:
                return found
            nearest = _nearest(family, shapes, config)
            break
    raise UserError(
        f"No timm model fits these {len(shapes):,} tensors: "
        f"{listed([f'{name} {shape}' for name, shape in shapes.items()], 6)}. {nearest}Set the architecture by its timm name, in "
        "[encoder.NAME] of the suite file."
    )


def _sized(family: _Family, shapes: Shapes, config: Mapping[str, Any]) -> tuple[EncoderRecipe, list[str]] | None:
    """Return a model of a family with the sizes that it needs to fit; None if none fits."""
    projection = shapes.get("patch_embed.proj.weight", ())
    if len(projection) != 4 or projection[2] != projection[3]:
        return None
    width, patch_size = projection[0], projection[2]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    if any(_block(shapes, number) != _block(shapes, 0) for number in range(depth)):
        return None
    tables = [shape for name, shape in shapes.items() if name.endswith("relative_position_bias_table")]
    seen = tables[0][-1] if tables else config.get("num_attention_heads")
    heads = seen if isinstance(seen, int) and seen > 0 else 0
    divides = heads if heads and width % heads == 0 else width // 64 if width % 64 == 0 else 1
    sizes = {"embed_dim": width, "patch_size": patch_size, "num_heads": divides}
    fitting = _as_they_are(family, shapes, config, depth) or _of_other_sizes(family, shapes, config, sizes)
    if not fitting:
        return None
    name, grid = fitting
    own, notes = _made(name), []
    image_size = grid * patch_size or _image_size(config) or own.patch_embed.img_size[0]
    if not heads:
        heads, as_what = _heads(own, name, width, depth, config["read_as"])
        notes.append(
            f"The number of heads is not stored in weights; assumed: {heads}, {as_what}. If the encoder was trained with another number, set "
            "it: lutbench add --heads N, or heads = N in [encoder.NAME]."
        )
    if not grid and not _image_size(config):
        notes.append(f"The input size is not stored in weights; assumed: {image_size} pixels, as in timm's {name}.")
    given = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
    timms = (own.patch_embed.patch_size[0], own.embed_dim, len(own.blocks), own.blocks[0].attn.num_heads)
    changed: dict[str, Any] = {
        size: value for (size, value), timm_has in zip(given.items(), timms, strict=True) if value != timm_has
    }
    recipe = EncoderRecipe(model=name, image_size=image_size, **changed)
    if changed and not is_plain(recipe):
        said = ", ".join(f"{size} {value}" for size, value in changed.items())
        raise UserError(
            f"The weights are those of timm's {timms_own(name)} {name} with other sizes ({said}), but only plain Vision Transformers "
            "can be built with other sizes. Use weights of a model that timm has."
        )
    return recipe, notes


def _nearest(family: _Family, shapes: Shapes, config: Mapping[str, Any]) -> str:
    """Return a sentence (with a trailing space) about the most similar model of a family and how it differs from the weights."""
    sizes: dict[str, int] = {}
    depth: dict[str, int] = {}
    if family in TRANSFORMERS:
        projection = shapes.get("patch_embed.proj.weight", ())
        if len(projection) != 4:
            return ""
        width = projection[0]
        sizes = {"embed_dim": width, "patch_size": projection[2], "num_heads": width // 64 if width % 64 == 0 else 1}
        depth = {"depth": 1 + max(int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name))}
    first = {(name, _whatever_the_grid(name, shape)) for name, shape in shapes.items() if not LATER.search(name)}
    unlike: dict[str, int] = {}
    for name in _names(family, config):
        if (model := _made(name, **family.shallow, **sizes)) is not None:
            own = {(name, _whatever_the_grid(name, shape)) for name, shape in _shapes_of(model).items()}
            unlike[name] = len(own ^ first)
    if not unlike:
        return ""
    nearest = min(unlike, key=lambda name: unlike[name])
    expected, given = _tensors(_shapes_of(_made(nearest, **depth, **sizes))), _tensors(shapes)
    grids = {name for name in expected.keys() & given.keys() if ON_GRID.fullmatch(name)}
    expected |= {name: given[name] for name in grids if expected[name].shape[-1] == given[name].shape[-1]}
    differing = sizes_that_differ(expected, given) or misfits(expected, given, "model")
    if not differing:
        differing = (
            f"{listed([f'{name} {shapes[name]}' for name in sorted(grids)], 1)} is not for a square grid of patches"
        )
    in_sizes = f" of width {sizes['embed_dim']} and depth {depth['depth']}" if sizes else ""
    return f"The most similar model is {nearest}{in_sizes}: {differing[0].lower()}{differing[1:]}. "


def _tensors(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _as_they_are(family: _Family, shapes: Shapes, config: Mapping[str, Any], depth: int) -> tuple[str, int] | None:
    """Return the model of a family that fits with its own patch and width, and the grid of the weights' positions.

    One that has as many blocks is preferred, and of those one of the same input.
    """
    width, _, patch_size, _ = shapes["patch_embed.proj.weight"]
    best: tuple[int, str, int] | None = None
    for name in _names(family, config):
        if f"_patch{patch_size}_" not in name:
            continue
        model = _made(name, **family.shallow)
        if model is None or model.embed_dim != width or (grid := _grid(model, shapes)) is None:
            continue
        same_depth = len(_made(name).blocks) == depth
        same_input = not grid or model.patch_embed.grid_size[0] == grid
        if best is None or 2 * same_depth + same_input > best[0]:
            best = 2 * same_depth + same_input, name, grid
        if same_depth and same_input:
            break
    return best and best[1:]


def _of_other_sizes(
    family: _Family, shapes: Shapes, config: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[str, int] | None:
    """Return the model of a family that fits with other ``sizes`` than its own, and the grid of the weights' positions.

    One of the same width is preferred, and of those one of the same patch.
    """
    best: tuple[int, str, int] | None = None
    tried = set()
    for name in _names(family, config):
        if (kind := re.sub(r"_patch\d+|_\d+$", "", name)) in tried:  # those of other patches and inputs are like it
            continue
        tried.add(kind)
        own = _made(name, **family.shallow)
        if own is None or _shapes_of(own).keys() != {one for one in shapes if not LATER.search(one)}:
            continue
        model = _made(name, **family.shallow, **sizes)
        if model is None or (grid := _grid(model, shapes)) is None:
            continue
        same = 2 * (own.embed_dim == sizes["embed_dim"]) + (own.patch_embed.patch_size[0] == sizes["patch_size"])
        if best is None or same > best[0]:
            best = same, name, grid
    return best and best[1:]


def _heads(own: Any, name: str, width: int, depth: int, read_as: str) -> tuple[int, str]:
    """Return the number of heads that encoders of these sizes have by convention, and whose it is."""
    if read_as.startswith("MoCo v3") and width == 384:
        return 12, "as MoCo v3's ViT-S has"
    if (own.embed_dim, len(own.blocks)) == (width, depth):
        return own.blocks[0].attn.num_heads, f"as timm's {name} has"
    if width % 64 == 0:
        return width // 64, "each 64 wide, as is usual"
    raise UserError(
        f"The number of heads is not stored in weights, and cannot be guessed: the width {width} is neither a multiple of 64, the usual width "
        f"of a head, nor that of a timm model with {depth} blocks. Set the number: lutbench add --heads N, or heads = N in "
        "[encoder.NAME] of a suite file."
    )


def _exact(family: _Family, shapes: Shapes, config: Mapping[str, Any]) -> tuple[EncoderRecipe, list[str]] | None:
    """Return the model of a family of which every name and shape is that of the weights; None if there is none.

    Of several it is the one that the configuration says, or that with the shortest name, and the others are told.
    """
    first = {name: shape for name, shape in shapes.items() if not LATER.search(name)}
    same: list[str] = []
    for name in _names(family, config):
        # of another depth: it need not be made
        if same and re.findall(r"\d+", name)[:1] != re.findall(r"\d+", same[0])[:1]:
            continue
        if (model := _made(name, **family.shallow)) is None or _shapes_of(model) != first:
            continue
        if _shapes_of(_made(name)) == shapes:
            same.append(name)
            if name == config.get("architecture"):
                break
    if not same:
        return None
    name, *others = same
    known = timm.get_pretrained_cfg(name)
    timms = known.to_dict().get("input_size", (3, 224, 224))[-1] if known else 224
    image_size = timms if family.modules == ("swin_transformer",) else _image_size(config) or timms
    note = f"The shapes fit {name}, but also {listed(others, 8)}; assumed: {name}. If it is another of these, set it: lutbench add --model NAME."
    return EncoderRecipe(model=name, image_size=image_size), [note] if others else []


def _names(family: _Family, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a family's models: that of the configuration, then the plainest, which are the shortest."""
    names = [name for module in family.modules for name in timm.list_models(module=module)]
    fitting = [name for name in names if re.fullmatch(family.names, name) and not name.startswith("test_")]
    yield from sorted(fitting, key=lambda name: (name != config.get("architecture"), len(name), name))


@lru_cache(maxsize=1024)
def _made(name: str, **arguments: Any) -> Any:
    """Return a model on the meta device, without a classifier; None if it cannot be made so."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError):  # what timm raises where sizes do not go together
        return None


def _shapes_of(model: nn.Module) -> Shapes:
    """Return names and shapes of a model's weights, without heads and last norms."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not HEADS.fullmatch(name)}


def _block(shapes: Shapes, number: int) -> Shapes:
    before = f"blocks.{number}."
    return {name.removeprefix(before): shape for name, shape in shapes.items() if name.startswith(before)}


def _grid(model: Any, shapes: Shapes) -> int | None:
    """Return the side of the grid of patches that weights have positions for, 0 if they have none.

    None if the model's first block, or what is outside blocks, has other names or shapes, or the grid is not square.
    """
    expected = {name: _whatever_the_grid(name, shape) for name, shape in _shapes_of(model).items()}
    if expected != {name: _whatever_the_grid(name, shape) for name, shape in shapes.items() if not LATER.search(name)}:
        return None
    table = next((shape for name, shape in shapes.items() if name.endswith("relative_position_bias_table")), None)
    if "pos_embed" in shapes:
        places = shapes["pos_embed"][1] - (0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens)
        grid = isqrt(max(places, 0))
        return grid if grid and grid * grid == places else None
    if table:  # of a grid of n x n there are (2 n - 1)^2 distances, and 3 to and from the class token
        across = isqrt(max(table[0] - 3, 0))
        return (across + 1) // 2 if across % 2 and across * across == table[0] - 3 else None
    return 0


def _whatever_the_grid(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (len(shape), *shape[-1:]) if ON_GRID.fullmatch(name) else shape


def _image_size(config: Mapping[str, Any]) -> int | None:
    size = config.get("image_size")
    return size if isinstance(size, int) and size > 0 else None
