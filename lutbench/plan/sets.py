"""The sets that a suite needs, and which of them are not there."""

from lutbench.data.catalogue import MEASURED_ON, TRAINED_ON, KnownDataset, in_hub_cache, location
from lutbench.errors import UserError
from lutbench.plan.counts import AnyData, Counts, known_of
from lutbench.recipes import DataRecipe, SegmentationDataRecipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import checkpoint_of
from lutbench.workspace import Workspace
from robustness.datasets import DatasetState, look_for

BUILT_HERE = ("photographs", "photograph-tiles", "mosaics")


def data_of(suite: LoadedSuite) -> list[AnyData]:
    """The sets that a suite trains on, each once."""
    found: dict[tuple[str, str], AnyData] = {}
    for run in suite.runs:
        data = getattr(run.recipe, "data", None)
        if isinstance(data, DataRecipe | SegmentationDataRecipe):
            known = found.setdefault((data.source, data.path), data)
            if not known.val:  # the other recipe of the same set says more
                found[data.source, data.path] = data
    return list(found.values())


def shifted_of(suite: LoadedSuite) -> dict[str, RobustnessDatasetRecipe]:
    """The shifted sets by name."""
    return {run.recipe.set.name: run.recipe.set for run in suite.runs if isinstance(run.recipe, RobustnessRecipe)}


def published_of(recipe: RobustnessDatasetRecipe) -> KnownDataset | None:
    """The published set that a suite measures on; None for one of its own."""
    return next((known for known in MEASURED_ON.values() if known.recipe.same_as(recipe)), None)


def look_at_all(suite: LoadedSuite, counts: Counts) -> None:
    """List every set once, so that what comes after is quick and shows no bar within another."""
    for data in data_of(suite):
        counts.problem(data)
    for recipe in shifted_of(suite).values():
        counts.cells(recipe)


def missing(suite: LoadedSuite, workspace: Workspace, counts: Counts) -> tuple[dict[str, str], list[str]]:
    """What is not there that the suite does not make itself.

    Known sets by name, each with what it lacks or where it was looked for; and a paragraph for everything else.
    """
    known_sets, told = dict[str, str](), list[str]()
    for data in data_of(suite):
        problem = "" if data.source in BUILT_HERE else counts.problem(data)
        known = known_of(data)
        if problem and known is None:
            told.append(problem)
        elif problem and known is not None:
            where = location(known, workspace.data)
            of_hub = data.source == "huggingface"
            absent = not where.exists() and not (of_hub and in_hub_cache(data.path))
            fetched = ", to be fetched from the Hub" if of_hub else ""
            known_sets[known.name] = f"not at {where}{fetched}" if absent else problem
    built = [location(TRAINED_ON[name], workspace.data) for name in BUILT_HERE]
    for name, recipe in shifted_of(suite).items():
        found = look_for(recipe, workspace.data)
        if (
            recipe.source != "folder"
            or found.state is DatasetState.WHOLE
            or any(map(found.where.is_relative_to, built))
        ):
            continue
        lacks = f"not at {found.where}" if found.state is DatasetState.ABSENT else " ".join(found.problems[:2])
        published = published_of(recipe)
        if published:
            known_sets[published.name] = lacks
        else:
            told.append(f"{name}: {lacks}")
    for run in suite.runs:
        try:
            checkpoint_of(run)
        except UserError as error:
            told.append(str(error))
    return known_sets, list(dict.fromkeys(told))
