"""The description beside exported weights: timm model, classes and image preprocessing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lutbench.errors import UserError
from lutbench.files import content_sha256, read_json, read_sealed
from lutbench.models.weight_files import sha256_of
from lutbench.recipes.base import CountOrZero, Depth, Deviation, EncoderRecipe, Mean, Pixels, Width
from lutbench.run_files import FINISHED, read_finished

_REMEDY = "Restore the file from a copy, or repeat the run that made it (--again). If the weights are from elsewhere, move the file away."


class _Closed(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Arguments(_Closed):
    """Arguments of ``timm.create_model``, see :func:`lutbench.models.encoders.timm_arguments`."""

    img_size: Pixels | None = None
    """Given of every plain ViT, and of others that are made for one size."""
    patch_size: Pixels | None = None
    embed_dim: Width | None = None
    depth: Depth | None = None
    num_heads: Depth | None = None
    num_classes: CountOrZero = 0
    global_pool: Literal["token", "avg"] | None = None
    """Of plain ViTs; of others it is timm's own."""
    fc_norm: bool = False


class Export(_Closed):
    """How to load weights with timm; with a checksum, like all results of runs."""

    load: str = ""
    """The call, for readers; nothing executes it."""
    timm: str = ""
    """timm's version, with which they were made; exports of before there were seals do not say it."""
    model: str
    arguments: Arguments
    image_size: Pixels | None = None
    """Side of its input, of a model that is not made for one size."""
    mean: Mean
    std: Deviation
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    crop_pct: float | None = Field(None, gt=0, le=1)
    class_names: list[str] = []
    """Of a classifier, in the order of its outputs; else empty."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the weights."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(self.class_names) != self.arguments.num_classes:
            raise ValueError(f"{len(self.class_names):,} class names for {self.arguments.num_classes:,} outputs")
        if (self.image_size is None) == (self.arguments.img_size is None):
            raise ValueError("expected the input size exactly once, as image_size or as img_size in arguments")
        return self

    @property
    def side(self) -> int:
        """Side of its input in pixels."""
        side = self.image_size or self.arguments.img_size
        assert side is not None
        return side

    @property
    def recipe(self) -> EncoderRecipe:
        """The architecture, as a suite file would give it: timm's model with its sizes."""
        sizes = self.arguments
        return EncoderRecipe(
            model=self.model,
            image_size=self.side,
            patch_size=sizes.patch_size,
            width=sizes.embed_dim,
            depth=sizes.depth,
            heads=sizes.num_heads,
        )

    @property
    def content(self) -> str:
        """sha256 of all that a result can depend on, whatever the weights."""
        later = set() if self.image_size else {"image_size"}  # exports of before keep theirs
        return content_sha256(self.model_dump(exclude={"load", "timm", "sha256", *later}))


def export_of(weights: Path, hash_of: Callable[[Path], str] = sha256_of) -> Export | None:
    """Return the description beside exported weights; None if there is none, or a JSON file from elsewhere.

    In the folder of a finished run it must be unchanged. ``hash_of`` returns the sha256 of the weights.

    Raises:
        UserError: if it was changed, or describes other weights.
    """
    beside = weights.with_suffix(".json")
    finished = read_finished(weights.parent).files if (weights.parent / FINISHED).is_file() else {}
    if not beside.is_file() and beside.name not in finished:
        return None
    if not beside.is_file() or finished.get(beside.name, found := sha256_of(beside)) != found:
        raise UserError(f"{beside}: missing, or changed since the run finished. {_REMEDY}")
    values: Any = read_json(beside)
    if not isinstance(values, dict) or values.keys().isdisjoint({"sha256", "seal"}):
        return None
    export = read_sealed(beside, Export, _REMEDY, older=lambda export: not export.timm)
    if export.sha256 != (held := hash_of(weights)):
        raise UserError(
            f"{beside}: expected weights with sha256 {export.sha256[:12]} beside it, found {held[:12]}. {_REMEDY}"
        )
    return export
