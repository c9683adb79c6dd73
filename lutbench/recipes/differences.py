"""A run's recipe beside the defaults of its kind, and beside the paper's recipe of the same kind."""

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
"""The suite that has the paper's recipes."""

NOT_SET = object()


class Setting(NamedTuple):
    """A setting that affects results."""

    name: str
    """``epochs``, or ``data.source`` of one in a table of its own."""
    value: Any
    default: Any
    """:data:`NOT_SET` if there is none: it must be given."""
    paper: Any
    """:data:`NOT_SET` if the paper's recipe has none."""


def recipe_of(kind: Kind, recipe: Mapping[str, Any]) -> RunRecipe | None:
    """Return the recipe that a record has kept; None if this version does not take its settings any more."""
    try:
        return kind.recipe.model_validate_json(json.dumps(recipe))
    except ValidationError:
        return None


def settings_of(
    affecting: Mapping[str, Any], kind: Kind, recipe: RunRecipe | None
) -> tuple[list[Setting], PlannedRun | None]:
    """Return every setting that affects the results of a run, and the run of the paper's suite that it stands beside.

    ``affecting`` are these settings as the run's identity has them, ``recipe`` the whole recipe, if it can be read.
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
    """Return the run of the same kind in the paper's suite from which a recipe differs in the fewest settings; the first of several.

    The kind of pre-training, such as LUT's or MAE's, and the dataset of a robustness run decide in this way.
    """
    own = flat(affecting)

    def differences(planned: PlannedRun) -> int:
        other = flat(planned.recipe.affecting_results())
        return sum(own.get(name, NOT_SET) != other.get(name, NOT_SET) for name in {*own, *other})

    return min((run for run in load_suite(PAPER).runs if run.kind is kind), key=differences, default=None)


def _defaults(model: type[Recipe], given: Mapping[str, Any], recipe: Recipe | None) -> dict[str, Any]:
    """Return what the settings of ``model`` are if nobody gives them, tables in those that ``given`` has."""
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
