"""Recipes: typed, checked settings in which a field either affects results or does not.

Fields that affect results are part of a run's identity; fields marked :data:`Runtime` (workers, log cadence,
paths) are not. Unknown keys, wrong types and values out of range are refused with the nearest known name.
"""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from lutbench.errors import UserError, nearest


class _Runtime:
    """Marks a field that cannot change a result."""


Runtime = _Runtime()


class Recipe(BaseModel):
    """Base of all settings: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    def affecting_results(self) -> dict[str, Any]:
        """The fields that affect results, as plain JSON values; subclasses drop what has no effect in context."""
        fields: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            if any(isinstance(mark, _Runtime) for mark in info.metadata):
                continue
            value = getattr(self, name)
            fields[name] = (
                value.affecting_results()
                if isinstance(value, Recipe)
                else self.model_dump(mode="json", include={name})[name]
            )
        return fields


class EncoderRecipe(Recipe):
    """A Vision Transformer of timm, by name, with the changes that make it smaller or larger."""

    label: Annotated[str, Runtime] = ""
    """How tables name the architecture, such as ``ViT-B/16``; the model's name if empty."""
    model: str = "vit_base_patch16_224"
    """Name in timm (paper: ViT-S/B/L with patch 16)."""
    image_size: PositiveInt = 224
    """Side of the square input in pixels (paper)."""
    patch_size: PositiveInt | None = None
    """Side of a patch in pixels; timm's for the model if not given, like the next three."""
    width: PositiveInt | None = None
    depth: PositiveInt | None = None
    heads: PositiveInt | None = None


class DataRecipe(Recipe):
    """One image set with a training and a validation split."""

    label: Annotated[str, Runtime] = ""
    """How tables name the set; its name in the suite file if empty."""
    source: str = Field(default="folder", pattern="^(folder|huggingface|photographs|photograph-tiles)$")
    """``folder`` (class folders under train and val, or any images without labels), ``huggingface`` (a
    `datasets` set, local or on the Hub), or one of the two sets built from photographs that ship in packages."""
    path: Annotated[str, Runtime] = ""
    """Folder below the data root, or the name of the Hugging Face set."""
    train: str = "train"
    """Name of the training split or folder."""
    val: str = "val"
    """Name of the validation split or folder; may be empty for a set that is only pre-trained on."""
    image_column: str = "image"
    label_column: str = "label"
    """Columns of a Hugging Face set; an empty label column means no labels."""
    revision: str | None = None
    """Git revision of a Hub set, to pin it."""
    undecodable: str = Field(default="stop", pattern="^(stop|skip)$")
    """What an image that cannot be decoded does: stop the run, or be passed over and counted."""


R = TypeVar("R", bound=BaseModel)


def read_recipe(model: type[R], values: Mapping[str, Any], where: str) -> R:
    """Check ``values`` against ``model``.

    Raises:
        UserError: naming each wrong key below ``where``, what was expected and the nearest known name.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(" ".join(_explain(error, model, where))) from error


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> Iterator[str]:
    for problem in error.errors():
        path = ".".join(str(part) for part in (where, *problem["loc"]) if part != "")
        if problem["type"] == "extra_forbidden":
            owner = _model_at(model, problem["loc"][:-1]) or model
            unknown = str(problem["loc"][-1])
            hint = nearest(unknown, owner.model_fields) or f" Known: {', '.join(owner.model_fields)}."
            yield f"{path}: no such setting.{hint}"
        elif problem["type"] == "missing":
            yield f"{path}: required, and not given."
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = problem["input"]
            told = "" if isinstance(found, Mapping | BaseModel) else f", found {found!r}"
            yield f"{path}: {message[:1].lower()}{message[1:].rstrip('.')}{told}."


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that the nested key ``path`` leads to."""
    found: type[BaseModel] | None = model
    for part in path:
        if found is None or str(part) not in found.model_fields:
            return None
        found = _model_in(found.model_fields[str(part)].annotation)
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return next((m for a in get_args(annotation) if (m := _model_in(a))), None)
    return None
