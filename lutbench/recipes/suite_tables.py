"""Tables of a suite file that make runs: their kind, their settings with the suite's defaults, and the names they refer to."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lutbench.errors import UserError, listed, unknown
from lutbench.kinds import Kind, kinds_of
from lutbench.recipes.base import DataRecipe, DatasetRecipe, EncoderRecipe, Recipe
from lutbench.recipes.retrieval import RevisitedDataRecipe
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.suite import Suite, TaskTable

AnyData = DataRecipe | SegmentationDataRecipe | RevisitedDataRecipe

_SHOWS: Mapping[Any, str] = {
    SegmentationDataRecipe: "images with masks",
    RevisitedDataRecipe: "photographs with queries (revisited Oxford or Paris)",
}
"""Descriptions of the dataset types, for messages; all others are images with or without labels."""


class Table(NamedTuple):
    """A table of a suite file that makes runs of one kind."""

    kind: Kind
    task: str
    """Name of the table, the TASK in ``[STAGE.TASK]``."""
    given: Any
    """The table as parsed."""
    settings: dict[str, Any]
    """The settings of its runs, with the suite's defaults for the kind."""

    @property
    def where(self) -> str:
        """Name of the table in messages."""
        return f"{self.kind.stage}.{self.task}"


def table_of(suite: Suite, stage: str, task: str, given: Any) -> Table:
    """Return a table with its kind: the one it names, or the first kind of the stage if its tables have no ``kind``."""
    kinds = kinds_of(stage)
    named = isinstance(given, TaskTable)
    kind = given.kind if named else next(iter(kinds))
    if kind not in kinds:
        raise unknown(f"{stage}.{task}.kind: unknown kind {kind!r}", kind, kinds)
    own = given if isinstance(given, dict) else given.model_extra or {}
    return Table(kinds[kind], task, given, suite.defaults.get(kind, {}) | ({"kind": kind} if named else {}) | own)


def with_data(
    settings: Mapping[str, Any], model: type[Recipe], data: Mapping[str, AnyData], where: str
) -> dict[str, Any]:
    """Return ``settings`` with the name of a dataset replaced by its recipe, which must be of the type that ``model`` needs."""
    name, wanted = settings.get("data"), model.model_fields["data"].annotation
    if isinstance(name, str) and name in data and type(data[name]) is not wanted:
        needs = _SHOWS.get(wanted, "images")
        fitting = [other for other, recipe in data.items() if type(recipe) is wanted]
        raise UserError(
            f"{where}.data: expected a dataset of {needs}, found {name} with source = {data[name].source!r}. "
            f"Suitable datasets: {listed(fitting, 20) or 'none'}."
        )
    return resolved(settings, "data", data, where)


def resolved(
    settings: Mapping[str, Any], key: str, known: Mapping[str, EncoderRecipe | DatasetRecipe], where: str
) -> dict[str, Any]:
    """Return ``settings`` with the name under ``key`` replaced by the table it refers to."""
    name = settings.get(key)
    if not isinstance(name, str):
        return dict(settings)
    if name not in known:
        raise unknown(f"{where}.{key}: there is no [{key}.{name}] in the suite file", name, known)
    return {**settings, key: labelled(name, known[name])}


def labelled(name: str, recipe: EncoderRecipe | DatasetRecipe) -> dict[str, Any]:
    """Return the settings of an encoder or a dataset; its label is its name unless it has one."""
    return {**recipe.model_dump(), "label": recipe.label or name}
