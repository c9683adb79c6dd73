"""Compare a run's recipe with the defaults of its kind and with the paper's recipe of the same kind."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from lutbench.changes import flat
from lutbench.kinds import Kind
from lutbench.recipes.base import Recipe, RunRecipe, Runtime
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import PlannedRun

PAPER = "paper"
"""The suite with the paper's recipes."""

NOT_SET = object()


class Setting(NamedTuple):
    """A setting that affects results."""

    name: str
    """Such as ``epochs``, or ``data.source`` for a nested setting."""
    value: Any
    default: Any
    """:data:`NOT_SET` if there is no default and the setting is required."""
    paper: Any
    """:data:`NOT_SET` if the paper's recipe does not have the setting."""


def recipe_of(kind: Kind, recipe: Mapping[str, Any]) -> RunRecipe | None:
    """Return the recipe stored in a record; None if this version no longer accepts its settings."""
    try:
        return kind.recipe.model_validate_json(json.dumps(recipe))
    except ValidationError:
        return None


def settings_of(
    affecting: Mapping[str, Any], kind: Kind, recipe: RunRecipe | None
) -> tuple[list[Setting], PlannedRun | None]:
    """Return every setting that affects the results of a run, and the run of the paper's suite to compare it with.

    ``affecting`` are these settings as stored in the run's identity; ``recipe`` is the whole recipe, if it can be read.
    """
    paper = nearest_of_paper(kind, affecting)
    theirs = flat(paper.recipe.affecting_results()) if paper else {}
    defaults = flat(_defaults(kind.recipe, affecting, recipe))
    rows = [
        Setting(name, value, defaults.get(name, NOT_SET), theirs.get(name, NOT_SET))
        for name, value in flat(affecting).items()
    ]
    return rows, paper


def nearest_of_paper(kind: Kind, affecting: Mapping[str, Any]) -> PlannedRun | None:
    """Return the run of the same kind in the paper's suite with the fewest different settings; the first if several are equal.

    This finds LUT for a LUT run, MAE for an MAE run, and for a robustness run the one with the same dataset.
    """
    own = flat(affecting)

    def differences(planned: PlannedRun) -> int:
        other = flat(planned.recipe.affecting_results())
        return sum(own.get(name, NOT_SET) != other.get(name, NOT_SET) for name in {*own, *other})

    return min((run for run in load_suite(PAPER).runs if run.kind is kind), key=differences, default=None)


def _defaults(model: type[Recipe], given: Mapping[str, Any], recipe: Recipe | None) -> dict[str, Any]:
    """Return the default values of the settings of ``model``, with nested tables for those that ``given`` has."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        kind, inner = info.annotation, given.get(name)
        if isinstance(kind, type) and issubclass(kind, Recipe) and isinstance(inner, Mapping):
            found[name] = _defaults(kind, inner, getattr(recipe, name, None))
        elif (
            not info.is_required()
            and Runtime not in info.metadata
            and (recipe is not None or info.default_factory is None)
        ):
            # a default may follow from other settings, which the recipe has
            found[name] = info.get_default(call_default_factory=True, validated_data=dict(recipe or {}))
    return found
