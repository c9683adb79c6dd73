"""Validate settings, with error messages in terms of the suite file's own tables and keys."""

import re
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lutbench.errors import UserError, nearest
from lutbench.kinds import KINDS

R = TypeVar("R", bound=BaseModel)


def read_recipe(model: type[R], values: Mapping[str, Any], where: str, also: Iterable[str] = ()) -> R:
    """Validate ``values`` as a ``model``; ``also`` names further keys that the table may have in a suite file.

    Raises:
        UserError: with each wrong key below ``where``, what was expected, and the nearest known name.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(" ".join(_explain(error, model, where, also))) from error


def _explain(error: ValidationError, model: type[BaseModel], where: str, also: Iterable[str]) -> Iterator[str]:
    for problem in error.errors():
        if problem["type"] == "default_factory_not_called":  # the default depends on a field that is wrong itself
            continue
        path = ".".join(str(part) for part in (where, *problem["loc"]) if part != "")
        if problem["type"] == "extra_forbidden":
            owner = _model_at(model, problem["loc"][:-1]) or model
            known = list(dict.fromkeys([*owner.model_fields, *(also if owner is model else ())]))
            hint = nearest(str(problem["loc"][-1]), known) or f" Known: {', '.join(known)}."
            yield f"{path}: no such setting.{_of_kinds(str(problem['loc'][-1]), owner) or hint}"
        elif problem["loc"][-1:] == ("[key]",):
            found = str(problem["input"])
            yield f"{'.'.join(map(str, (where, *problem['loc'][:-2]))).strip('.')}: expected a name, found {found[:80]!r}: {_told(problem)}."
        elif problem["type"] == "missing":
            yield f"{path}: required, but missing."
        else:
            found, text = problem["input"], repr(problem["input"])
            shown = (
                ""
                if isinstance(found, Mapping | BaseModel)
                else f", found {text[:200]}{'...' if len(text) > 200 else ''}"
            )
            yield f"{path}: {_told(problem)}{shown}.{_nearest_name(problem)}"


def _of_kinds(setting: str, model: type[BaseModel]) -> str:
    """Return a sentence with the other kinds of the same stage that have a setting; empty if none has it."""
    stage = next((kind.stage for kind in KINDS.values() if kind.recipe is model), None)
    kinds = [name for name, kind in KINDS.items() if kind.stage == stage and setting in kind.recipe.model_fields]
    return f" Kinds that have it: {', '.join(kinds)}." if kinds else ""


def _nearest_name(problem: Mapping[str, Any]) -> str:
    """Return a suggestion of the nearest allowed name, if the setting takes one of several names."""
    expected = problem.get("ctx", {}).get("expected") if problem["type"] in ("literal_error", "unknown_name") else ""
    return nearest(str(problem["input"]), re.findall(r"[^\s',]+", expected)) if expected else ""


def _told(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:].rstrip('.')}"


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the model at the nested key ``path``."""
    found: Any = model
    for part in path:
        if get_origin(found) is dict:
            found = get_args(found)[1]
        elif isinstance(found, type) and issubclass(found, BaseModel) and str(part) in found.model_fields:
            found = found.model_fields[str(part)].annotation
        else:
            return None
        if get_origin(found) in (Union, UnionType):
            found = next(part for part in get_args(found) if part is not type(None))
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None
