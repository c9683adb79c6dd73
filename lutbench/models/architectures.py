"""Which model of timm weights belong to, by their names and shapes alone.

Candidates are made with one block, on the meta device, which takes milliseconds; those that are left over, as they are.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from lutbench.errors import UserError, listed
from lutbench.recipes.base import EncoderRecipe

Shapes = dict[str, tuple[int, ...]]


class _Family(NamedTuple):
    """Models of timm of one kind."""

    modules: tuple[str, ...]
    """Modules of ``timm.models`` that define them."""
    names: str
    """What their names look like: models that compute otherwise with the same shapes are none of them."""
    mark: str
    """What the name of some tensor looks like in all of them, and in no family above."""
    shallow: dict[str, Any]
    """The arguments that make one of a single block, or of one in every stage."""


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
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> tuple[EncoderRecipe, list[str]]:
    """Return the model and the sizes that fit weights under timm's names, and sentences about what had to be assumed.

    Tensors of the meta device suffice. ``config`` is the JSON beside the weights, Hugging Face's or timm's: its
    ``num_attention_heads``, ``image_size`` and ``architecture`` are believed where shapes do not tell. A model that timm has at exactly
    these sizes is preferred.

    Raises:
        UserError: with the shapes that were found, if no model fits, or the number of heads cannot be told.
    """
    config = config or {}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not HEADS.fullmatch(name)}
    if (activation := config.get("hidden_act", "gelu")) not in ("gelu", "silu", "swish"):
        raise UserError(
            f"The configuration beside the weights says hidden_act = {activation!r}: timm's encoders have GELU, so these weights cannot be "
            "read. Give weights of another encoder."
        )
    for family in (*TRANSFORMERS, *OTHERS):
        if any(re.fullmatch(family.mark, name) for name in shapes):
            found = (_sized if family in TRANSFORMERS else _exact)(family, shapes, config)
            if found is None:
                break
            return found
    raise UserError(
        f"Expected an encoder that timm has, and found none of these {len(shapes):,} tensors: "
        f"{listed([f'{name} {shape}' for name, shape in shapes.items()], 6)}. Name its architecture as timm does, with "
        "[encoder.NAME] in the suite file."
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
    trial = heads if heads and width % heads == 0 else 1 if width % 64 else width // 64
    fitting = []
    for name in _names(family, config):
        sizes = {"embed_dim": width, "patch_size": patch_size, "num_heads": trial, **family.shallow}
        own = _made(name, **family.shallow)
        if own is None or _names_of(own) != {one for one in shapes if not LATER.search(one)}:
            continue
        model = _made(name, **sizes)
        if model is not None and _fits(model, shapes) and (side := _side(model, shapes, patch_size)) is not None:
            image_size = side or _image_size(config) or own.patch_embed.img_size[0]
            own_sizes = own.embed_dim, own.patch_embed.patch_size[0], own.patch_embed.img_size[0]
            differs = [a != b for a, b in zip(own_sizes, (width, patch_size, image_size), strict=True)]
            fitting.append((differs, name != config.get("architecture"), len(name), name, image_size))
    if not fitting:
        return None
    nearest = min(fitting)
    alike = [one for one in sorted(fitting) if one[0][:2] == nearest[0][:2]]
    _, _, _, name, image_size = next((one for one in alike if len(_whole(one[3]).blocks) == depth), nearest)
    own = _whole(name)
    notes = []
    if not heads:
        heads, as_what = _heads(own, name, width, depth)
        notes.append(
            f"The number of heads cannot be seen in weights: {heads} are taken, {as_what}. If these were trained with another "
            "(MoCo v3's ViT-S has 12), set heads in [encoder.NAME]."
        )
    if not any(ON_GRID.fullmatch(one) for one in shapes) and not _image_size(config):
        notes.append(f"The size of the input cannot be seen in weights: {image_size} pixels are taken, as timm's {name} has.")
    given = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
    timms = {
        "patch_size": own.patch_embed.patch_size[0],
        "width": own.embed_dim,
        "depth": len(own.blocks),
        "heads": own.blocks[0].attn.num_heads,
    }
    changed: dict[str, Any] = {size: value for size, value in given.items() if value != timms[size]}
    return EncoderRecipe(model=name, image_size=image_size, **changed), notes


def _heads(own: Any, name: str, width: int, depth: int) -> tuple[int, str]:
    """Return the number of heads that encoders of these sizes have by convention, and whose it is."""
    if (own.embed_dim, len(own.blocks)) == (width, depth):
        return own.blocks[0].attn.num_heads, f"as timm's {name} has"
    if width % 64 == 0:
        return width // 64, "each 64 wide, as is usual"
    raise UserError(
        f"The number of heads cannot be seen in weights, and a width of {width} is neither a multiple of 64, which heads usually have, nor "
        f"that of a model of timm with {depth} blocks. Name the architecture with its heads: [encoder.NAME] in the suite file."
    )


def _exact(family: _Family, shapes: Shapes, config: Mapping[str, Any]) -> tuple[EncoderRecipe, list[str]] | None:
    """Return the model of a family of which every name and shape is that of the weights; None if there is none."""
    first = {name: shape for name, shape in shapes.items() if not LATER.search(name)}
    for name in _names(family, config):
        if (model := _made(name, **family.shallow)) is None or _shapes_of(model) != first:
            continue
        if _shapes_of(_whole(name)) == shapes:
            known = timm.get_pretrained_cfg(name)
            timms = known.to_dict().get("input_size", (3, 224, 224))[-1] if known else 224
            image_size = timms if family.modules == ("swin_transformer",) else _image_size(config) or timms
            return EncoderRecipe(model=name, image_size=image_size), []
    return None


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


def _whole(name: str) -> Any:
    return _made(name)


def _shapes_of(model: nn.Module) -> Shapes:
    """Return names and shapes of a model's weights, without heads and last norms."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not HEADS.fullmatch(name)}


def _names_of(model: nn.Module) -> set[str]:
    return set(_shapes_of(model))


def _block(shapes: Shapes, number: int) -> Shapes:
    before = f"blocks.{number}."
    return {name.removeprefix(before): shape for name, shape in shapes.items() if name.startswith(before)}


def _fits(model: nn.Module, shapes: Shapes) -> bool:
    """Return whether the first block of a model and what is outside blocks have the shapes, apart from the size of grids."""
    expected = {name: _whatever_the_grid(name, shape) for name, shape in _shapes_of(model).items()}
    return expected == {name: _whatever_the_grid(name, shapes[name]) for name in expected}


def _whatever_the_grid(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (len(shape), *shape[-1:]) if ON_GRID.fullmatch(name) else shape


def _side(model: Any, shapes: Shapes, patch_size: int) -> int | None:
    """Return the side of the input by the grid that position embeddings are of; 0 if there are none, None if it is not square."""
    table = next((shape for name, shape in shapes.items() if name.endswith("relative_position_bias_table")), None)
    if "pos_embed" in shapes:
        places = shapes["pos_embed"][1] - (0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens)
        grid = round(max(places, 0) ** 0.5)
        return grid * patch_size if grid and grid * grid == places else None
    if table:  # of a grid of n x n there are (2 n - 1)^2 distances, and 3 to and from the class token
        across = round(max(table[0] - 3, 0) ** 0.5)
        return (across + 1) // 2 * patch_size if across % 2 and across * across == table[0] - 3 else None
    return 0


def _image_size(config: Mapping[str, Any]) -> int | None:
    size = config.get("image_size")
    return size if isinstance(size, int) and size > 0 else None
