"""What a suite takes on disk: what of it is there, what is still to come, and whether it fits."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutbench.checkpoint import KEEP
from lutbench.data.known import BUILDERS, CATALOGUE, place
from lutbench.errors import UserError
from lutbench.plan.compute import ASPECT
from lutbench.plan.costs import Costs
from lutbench.plan.counts import AnyData, Counts, corruptions_of, kept_checkpoints, known_of
from lutbench.recipes import DataRecipe, PretrainRecipe, ScenesRecipe
from lutbench.recipes.robustness import RobustnessRecipe, ShiftedSetRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import Workspace, checkpoint_of
from lutbench.shifted.published import PUBLISHED
from lutbench.shifted.sets import State

VALUE = 4
"""Bytes of a number: weights and moments are kept in float32."""

DATA, RUNS, RESULTS = "data", "runs", "results"
"""The three folders."""

_PUBLISHED = {known.recipe.name: known for known in PUBLISHED.values()}
"""Shifted sets by the name that they have in a suite's tables."""


@dataclass(frozen=True)
class Item:
    """Something that takes room."""

    what: str
    folder: str
    """``data``, ``runs`` or ``results``."""
    here: int | None = None
    """Bytes that are there; None if it is there and was not measured."""
    to_come: int | None = 0
    """Bytes that it will take more; None if nothing says."""


@dataclass(frozen=True)
class Room:
    """One of the three folders, or that in which it will be made."""

    name: str
    path: Path
    free: int
    device: int


def items_of(suite: LoadedSuite, workspace: Workspace, counts: Counts, costs: Costs) -> list[Item]:
    """Data sets, caches, corrupted copies, checkpoints and the weights that stay. Records are small and left out."""
    items = [*_sets(suite, workspace, counts), *_caches(suite, workspace, counts), *_copies(suite, workspace, counts)]
    checkpoints = exported = 0
    for cost in costs.to_run:
        checkpoints += VALUE * cost.demand.checkpoint * kept_checkpoints(cost.planned.recipe, counts, KEEP)
        exported += VALUE * cost.demand.exported
    if costs.to_run:
        items += [
            Item(f"checkpoints, the last {KEEP} of each run", RUNS, 0, checkpoints),
            Item("weights of encoders, classifiers and segmenters", RUNS, 0, exported),
        ]
    return items


def rooms_of(workspace: Workspace) -> list[Room]:
    """The three folders with their free space."""
    rooms = []
    for name, folder in ((DATA, workspace.data), (RUNS, workspace.runs), (RESULTS, workspace.results)):
        path = folder.absolute()
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        rooms.append(Room(name, path, shutil.disk_usage(there).free, there.stat().st_dev))
    return rooms


def demands_of(items: list[Item], rooms: list[Room]) -> list[tuple[list[Room], int, int]]:
    """Of every disk the folders that lie there, the bytes to come as far as they are known, and the bytes free."""
    demands = []
    for device in dict.fromkeys(room.device for room in rooms):
        there = [room for room in rooms if room.device == device]
        names, free = {room.name for room in there}, min(room.free for room in there)
        demands.append((there, sum(item.to_come or 0 for item in items if item.folder in names), free))
    return demands


def data_of(suite: LoadedSuite) -> list[AnyData]:
    """The sets that a suite trains on, each once."""
    found: dict[tuple[str, str], AnyData] = {}
    for run in suite.runs:
        data = getattr(run.recipe, "data", None)
        if isinstance(data, DataRecipe | ScenesRecipe):
            known = found.setdefault((data.source, data.path), data)
            if not known.val:  # the other recipe of the same set says more
                found[data.source, data.path] = data
    return list(found.values())


def shifted_of(suite: LoadedSuite) -> dict[str, tuple[ShiftedSetRecipe, int]]:
    """The shifted sets by name, and how many runs measure each."""
    found: dict[str, tuple[ShiftedSetRecipe, int]] = {}
    for run in suite.runs:
        if isinstance(run.recipe, RobustnessRecipe):
            recipe, runs = found.get(run.recipe.set.name, (run.recipe.set, 0))
            found[run.recipe.set.name] = recipe, runs + 1
    return found


def _sets(suite: LoadedSuite, workspace: Workspace, counts: Counts) -> Iterator[Item]:
    trained_on = []
    for data in data_of(suite):
        known = known_of(data)
        name = data.label or data.path or data.source
        published = None if known is None else int(known.gigabytes * 1e9)
        trained_on.append(place(known, workspace.data) if known else (workspace.data / data.path).absolute())
        if counts.problem(data):
            yield Item(f"{name} ({_of(known is not None)})", DATA, 0, published)
        else:
            yield Item(name, DATA, _bytes(data, workspace))
    seen = set[tuple[Path, ...]]()
    for name, (recipe, _) in shifted_of(suite).items():
        where = (workspace.data / recipe.folder).absolute()
        folders = tuple(where / part for part in recipe.parts.values()) or (where,)
        if recipe.source != "folder" or any(map(where.is_relative_to, trained_on)) or folders in seen:
            continue
        seen.add(folders)
        known_set = _PUBLISHED.get(name)
        if workspace.shifted(recipe).state is State.WHOLE:
            yield Item(known_set.name if known_set else name, DATA, None)
        elif known_set and known_set.gigabytes is not None:
            yield Item(f"{known_set.name} ({_of(True)})", DATA, 0, int(known_set.gigabytes * 1e9))
        else:
            yield Item(f"{known_set.name if known_set else name} ({_of(False)})", DATA, 0, None)


def _of(known: bool) -> str:
    return "as published" if known else "size unknown"


def _bytes(data: AnyData, workspace: Workspace) -> int:
    """Of the files of a set that is there."""
    if isinstance(data, ScenesRecipe):
        both = workspace.scenes(data, "train"), workspace.scenes(data, "val")
        files = (
            path(index) for each in both for path in (each.image_path, each.mask_path) for index in range(len(each))
        )
        return sum(file.stat().st_size for file in files)
    splits = [workspace.images(data, "train"), *([workspace.images(data, "val")] if data.val else [])]
    return sum(int(np.maximum(images.sizes, 0).sum()) for images in splits)


def _caches(suite: LoadedSuite, workspace: Workspace, counts: Counts) -> Iterator[Item]:
    recipes = [run.recipe for run in suite.runs if isinstance(run.recipe, PretrainRecipe) and run.recipe.cache]
    wanted = {(recipe.data.model_dump_json(), recipe.encoder.image_size): recipe.data for recipe in recipes}
    for (_, side), data in wanted.items():
        what = f"cache of {data.label or data.path or data.source}, short side {side}"
        if counts.is_here(data):
            from lutbench.data.cache import cache_folder  # here: datasets takes a second to import
            from lutbench.data.caching import expected_bytes

            images = workspace.images(data, "train")
            size = expected_bytes(images, side)
            made = (cache_folder(images, side, workspace.data) / "cache.json").is_file()
            yield Item(what, DATA, size if made else 0, 0 if made else size)
        else:
            count = counts.images(data, "train")
            yield Item(what, DATA, 0, None if count is None else round(count * 3 * side * side * ASPECT))


def _copies(suite: LoadedSuite, workspace: Workspace, counts: Counts) -> Iterator[Item]:
    for name, (recipe, _) in shifted_of(suite).items():
        if recipe.source != "corrupted":
            continue
        each, cells = counts.copied(recipe), len(corruptions_of(recipe)) * len(recipe.severities)
        size = None if each is None else cells * each * 3 * recipe.copy_side**2
        whole = workspace.shifted(recipe).state is State.WHOLE
        yield Item(f"{name}, a corrupted copy", DATA, size if whole else 0, 0 if whole else size)


def missing(suite: LoadedSuite, workspace: Workspace, counts: Counts) -> tuple[dict[str, str], list[str]]:
    """What is not there that the suite does not make itself.

    Known sets by name, each with what it lacks or where it was looked for; and a paragraph for everything else.
    """
    known_sets, told = dict[str, str](), list[str]()
    for data in data_of(suite):
        problem = "" if data.source in BUILDERS else counts.problem(data)
        if not problem:
            continue
        known = known_of(data)
        if known is None:
            told.append(problem)
        else:
            where = place(known, workspace.data)
            fetched = ", to be fetched from the Hub" if data.source == "huggingface" else ""
            known_sets[known.name] = problem if where.exists() else f"not at {where}{fetched}"
    built = [place(CATALOGUE[name], workspace.data) for name in BUILDERS]
    for name, (recipe, _) in shifted_of(suite).items():
        found = workspace.shifted(recipe)
        if recipe.source != "folder" or found.state is State.WHOLE or any(map(found.where.is_relative_to, built)):
            continue
        lacks = f"not at {found.where}" if found.state is State.ABSENT else " ".join(found.problems[:2])
        if name in _PUBLISHED:
            known_sets[_PUBLISHED[name].name] = lacks
        else:
            told.append(f"{name}: {lacks}")
    for run in suite.runs:
        try:
            checkpoint_of(run)
        except UserError as error:
            told.append(str(error))
    return known_sets, list(dict.fromkeys(told))
