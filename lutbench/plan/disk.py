"""What a suite takes on disk: what of it is there, what is still to come, and whether it fits."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutbench.checkpoint import KEEP
from lutbench.data.catalogue import TRAINED_ON, location
from lutbench.plan.compute import ASPECT
from lutbench.plan.costs import Costs
from lutbench.plan.counts import AnyData, Counts, corruptions_of, kept_checkpoints, known_of
from lutbench.plan.sets import data_of, published_of, shifted_of
from lutbench.recipes import DataRecipe, PretrainRecipe, SegmentationDataRecipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.workspace import Workspace
from robustness.datasets import DatasetState, look_for

VALUE = 4
"""Bytes of a number: weights and moments are kept in float32."""

DATA, RUNS, RESULTS = "data", "runs", "results"
"""The three folders."""

HUB = "HF_HOME"
"""Where `datasets` keeps what it fetches from the Hub."""


@dataclass(frozen=True)
class Item:
    """Something that takes room."""

    what: str
    folder: str
    """``data``, ``runs``, ``results`` or ``HF_HOME``."""
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
    items = [*_sets(suite, workspace, counts), *_caches(costs, workspace, counts), *_copies(suite, workspace, counts)]
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


def _sets(suite: LoadedSuite, workspace: Workspace, counts: Counts) -> Iterator[Item]:
    """The sets that a suite trains on; then the shifted ones that are not made of those."""
    places = []
    for data in data_of(suite):
        if isinstance(data, DataRecipe) and data.streaming:
            continue
        known = known_of(data)
        where = location(known, workspace.data) if known else (workspace.data / data.path).absolute()
        places.append(where)
        name = data.label or data.path or data.source
        folder = HUB if data.source == "huggingface" and not where.exists() else DATA
        if counts.problem(data):
            yield _to_come(name, None if known is None else known.gigabytes, folder)
        else:
            yield Item(name, folder, _bytes(data, workspace))
    for recipe in shifted_of(suite).values():
        if recipe.source == "folder":
            yield from _shifted(recipe, workspace, places)


def _shifted(recipe: RobustnessDatasetRecipe, workspace: Workspace, places: list[Path]) -> Iterator[Item]:
    """What a shifted set takes that is not at one of ``places``, which its own are added to: its files, and the set of the
    catalogue that it is made of, or whose classes are the known ones."""
    root = workspace.data.absolute()
    for folder in filter(None, (recipe.folder, recipe.known)):
        for known in TRAINED_ON.values():
            where = location(known, root)
            if (root / folder).is_relative_to(where) and where not in places:
                places.append(where)
                yield Item(known.name, DATA, None) if where.exists() else _to_come(known.name, known.gigabytes)
    folders = [root / recipe.folder / part for part in recipe.parts.values()]
    if all(any(map(folder.is_relative_to, places)) for folder in folders):
        return
    places += folders
    published = published_of(recipe)
    name = published.name if published else recipe.name
    if look_for(recipe, workspace.data).state is DatasetState.WHOLE:
        yield Item(name, DATA, None)
    else:
        yield _to_come(name, published.gigabytes if published else None)


def _to_come(name: str, size: float | None, folder: str = DATA) -> Item:
    """A set that is not there, of ``size`` GB as published."""
    if size is None:
        return Item(f"{name} (size unknown)", folder, 0, None)
    return Item(f"{name} (as published)", folder, 0, int(size * 1e9))


def _bytes(data: AnyData, workspace: Workspace) -> int:
    """Of the files of a set that is there."""
    if isinstance(data, SegmentationDataRecipe):
        both = workspace.open(data, "train"), workspace.open(data, "val")
        files = (
            path(index) for each in both for path in (each.image_path, each.mask_path) for index in range(len(each))
        )
        return sum(file.stat().st_size for file in files)
    splits = [workspace.open(data, "train"), *([workspace.open(data, "val")] if data.val else [])]
    return sum(int(np.maximum(images.sizes, 0).sum()) for images in splits)


def _caches(costs: Costs, workspace: Workspace, counts: Counts) -> Iterator[Item]:
    """Of the runs that have not finished: a finished one needs its cache no more."""
    recipes = [cost.planned.recipe for cost in costs.to_run]
    cached = [recipe for recipe in recipes if isinstance(recipe, PretrainRecipe) and recipe.cache]
    wanted = {(recipe.data.model_dump_json(), recipe.encoder.image_size): recipe.data for recipe in cached}
    for (_, side), data in wanted.items():
        what = f"cache of {data.label or data.path or data.source}, short side {side}"
        if counts.is_here(data):
            from lutbench.data.cache import cache_folder  # here: datasets takes a second to import
            from lutbench.data.cache_build import expected_bytes

            images = workspace.open(data, "train")
            folder = cache_folder(images, side, workspace.data)
            here = sum(file.stat().st_size for file in folder.glob("*.arrow"))
            made = (folder / "cache.json").is_file()
            yield Item(what, DATA, here, 0 if made else max(0, expected_bytes(images, side) - here))
        else:
            count = counts.images(data, "train")
            yield Item(what, DATA, 0, None if count is None else round(count * 3 * side * side * ASPECT))


def _copies(suite: LoadedSuite, workspace: Workspace, counts: Counts) -> Iterator[Item]:
    for name, recipe in shifted_of(suite).items():
        if recipe.source != "corrupted":
            continue
        each, cells = counts.copied(recipe), len(corruptions_of(recipe)) * len(recipe.severities)
        size = None if each is None else cells * each * 3 * recipe.copy_side**2
        whole = look_for(recipe, workspace.data).state is DatasetState.WHOLE
        yield Item(f"{name}, a corrupted copy", DATA, size if whole else 0, 0 if whole else size)
