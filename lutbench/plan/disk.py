"""What a suite takes on disk: what of it is present, what is still to come, and whether it fits."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lutbench.checkpoint import KEEP
from lutbench.data.survey import DATA
from lutbench.plan.compute import ASPECT
from lutbench.plan.costs import Costs
from lutbench.plan.datasets import Surveys, datasets_of
from lutbench.recipes.suite import LoadedSuite
from lutbench.workspace import Workspace

VALUE = 4
"""Bytes of a number: weights and moments are kept in float32."""

RUNS, RESULTS = "runs", "results"
"""The folders beside that of data."""


@dataclass(frozen=True)
class Item:
    """Something that takes room."""

    what: str
    folder: str
    """``data``, ``runs``, ``results`` or ``HF_HOME``."""
    present: int | None = None
    """Bytes that are on disk; None if it is present and was not measured."""
    to_come: int | None = 0
    """Bytes that it will take more; None if nothing says."""


@dataclass(frozen=True)
class Room:
    """One of the three folders, or that in which it will be made."""

    name: str
    path: Path
    free: int
    device: int


def items_of(suite: LoadedSuite, workspace: Workspace, surveys: Surveys, costs: Costs) -> list[Item]:
    """Return datasets, caches, corrupted copies, checkpoints and the weights that stay. Records are small and left out."""
    items = [*_datasets(suite, surveys), *_caches(costs, workspace, surveys)]
    checkpoints = exported = 0
    for cost in costs.to_run:
        recipe = cost.planned.recipe
        checkpoints += VALUE * cost.demand.checkpoint * recipe.checkpoints(surveys.of(recipe.dataset).images, KEEP)
        exported += VALUE * cost.demand.exported
    if costs.to_run:
        items += [
            Item(f"checkpoints, the last {KEEP} of each run", RUNS, 0, checkpoints),
            Item("weights of encoders, classifiers and segmenters", RUNS, 0, exported),
        ]
    return items


def rooms_of(workspace: Workspace) -> list[Room]:
    """Return the three folders with their free space."""
    rooms = []
    for name, folder in ((DATA, workspace.data), (RUNS, workspace.runs), (RESULTS, workspace.results)):
        path = folder.absolute()
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        rooms.append(Room(name, path, shutil.disk_usage(existing).free, existing.stat().st_dev))
    return rooms


def demands_of(items: list[Item], rooms: list[Room]) -> list[tuple[list[Room], int, int]]:
    """Return of every disk the folders on it, the bytes to come as far as they are known, and the bytes free."""
    demands = []
    for device in dict.fromkeys(room.device for room in rooms):
        on_it = [room for room in rooms if room.device == device]
        names, free = {room.name for room in on_it}, min(room.free for room in on_it)
        demands.append((on_it, sum(item.to_come or 0 for item in items if item.folder in names), free))
    return demands


def _datasets(suite: LoadedSuite, surveys: Surveys) -> Iterator[Item]:
    """Yield the files of every dataset, those that several share once."""
    claimed: list[Path] = []
    for recipe in datasets_of(suite):
        for holding in surveys.of(recipe).holdings:
            if all(any(map(path.is_relative_to, claimed)) for path in holding.paths):
                continue
            claimed += holding.paths
            if holding.present:
                yield Item(holding.name, holding.folder, holding.size)
            else:
                yield Item(holding.name, holding.folder, 0, holding.size)


def _caches(costs: Costs, workspace: Workspace, surveys: Surveys) -> Iterator[Item]:
    """Yield the caches of the runs that have not finished: a finished one needs its cache no more."""
    recipes = [cost.planned.recipe for cost in costs.to_run]
    wanted = {
        (recipe.dataset.model_dump_json(), recipe.cache_side): recipe.dataset
        for recipe in recipes
        if recipe.cache_side is not None
    }
    for (_, side), dataset in wanted.items():
        assert side is not None
        what = f"cache of {dataset.label or dataset.path or dataset.source}, short side {side}"
        survey = surveys.of(dataset)
        if survey.problem:
            count = survey.images.get("train")
            yield Item(what, DATA, 0, None if count is None else round(count * 3 * side * side * ASPECT))
            continue
        from lutbench.data.cache import cache_folder  # here: datasets takes a second to import
        from lutbench.data.cache_build import expected_bytes

        images = workspace.open(dataset, "train")
        folder = cache_folder(images, side, workspace.data)
        present = sum(file.stat().st_size for file in folder.glob("*.arrow"))
        made = (folder / "cache.json").is_file()
        yield Item(what, DATA, present, 0 if made else max(0, expected_bytes(images, side) - present))
