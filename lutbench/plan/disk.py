"""The disk space that a suite uses and still needs."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lutbench.checkpoint_names import KEEP
from lutbench.data.cache_place import cache_folder, expected_bytes
from lutbench.data.survey import DATA, DiskUse, Survey
from lutbench.plan.cost import ASPECT
from lutbench.plan.costs import Costs
from lutbench.workspace import Workspace

VALUE = 4
"""Bytes of a number: weights and moments are kept in float32."""

RUNS, RESULTS = "runs", "results"
"""Names of the folders besides that of the data."""


@dataclass(frozen=True)
class Room:
    """One of the three folders of a suite, and the disk it is on."""

    name: str
    path: Path
    free: int
    device: int


def disk_uses(costs: Costs, surveys: Mapping[str, Survey], workspace: Workspace) -> list[DiskUse]:
    """Return the uses by datasets, caches, checkpoints and final weights; records are small and left out."""
    uses = [*_datasets(surveys.values()), *_caches(costs, surveys, workspace)]
    checkpoints = exported = 0
    for one in costs.to_run:
        images = surveys[one.run.name].images
        checkpoints += VALUE * one.cost.checkpoint * one.run.recipe.checkpoints(images, KEEP)
        exported += VALUE * one.cost.exported
    if costs.to_run:
        uses += [
            DiskUse(f"checkpoints (last {KEEP} of each run)", RUNS, 0, checkpoints),
            DiskUse("weights of encoders, decoders, classifiers and segmenters", RUNS, 0, exported),
        ]
    return uses


def rooms_of(workspace: Workspace) -> list[Room]:
    """Return the three folders with the free space of their disks; they need not exist yet."""
    rooms = []
    for name, folder in ((DATA, workspace.data), (RUNS, workspace.runs), (RESULTS, workspace.results)):
        path = folder.absolute()
        parent = next(parent for parent in (path, *path.parents) if parent.exists())
        rooms.append(Room(name, path, shutil.disk_usage(parent).free, parent.stat().st_dev))
    return rooms


def by_disk(uses: Iterable[DiskUse], rooms: list[Room]) -> Iterator[tuple[list[Room], int, int]]:
    """Yield for each disk the folders on it, the bytes still needed as far as known, and the free bytes."""
    for device in dict.fromkeys(room.device for room in rooms):
        on_it = [room for room in rooms if room.device == device]
        names = {room.name for room in on_it}
        yield on_it, sum(use.to_come or 0 for use in uses if use.folder in names), min(room.free for room in on_it)


def _datasets(surveys: Iterable[Survey]) -> Iterable[DiskUse]:
    """Return the uses by datasets; one inside the folder of another is a part of it and not listed."""
    found: dict[tuple[Path, ...] | str, DiskUse] = {}
    for use in (use for survey in surveys for use in survey.disk):
        key = use.paths or use.name
        if key in found:  # two recipes of one dataset; one may read more splits
            found[key] = max(found[key], use, key=lambda use: (use.to_come != 0, use.present or 0))
            continue
        filled = [path for other in found.values() for path in other.paths]
        if not use.paths or not all(any(map(path.is_relative_to, filled)) for path in use.paths):
            found[key] = use
    return found.values()


def _caches(costs: Costs, surveys: Mapping[str, Survey], workspace: Workspace) -> Iterator[DiskUse]:
    """Yield the caches of the runs that have not finished; finished runs no longer need theirs."""
    cached = {
        (one.run.recipe.dataset.model_dump_json(), side): one.run
        for one in costs.to_run
        if (side := one.run.recipe.cache_side) is not None
    }
    for (_, side), run in cached.items():
        survey, dataset = surveys[run.name], run.recipe.dataset
        name = f"cache of {survey.name}, short side {side}"
        if "train" in survey.problems:
            count = survey.images.get("train")
            yield DiskUse(name, DATA, 0, None if count is None else round(count * 3 * side * side * ASPECT))
            continue
        images = workspace.open(dataset, "train")
        folder = cache_folder(images, side, workspace.data)
        present = sum(file.stat().st_size for file in folder.glob("*.arrow"))
        whole = (folder / "cache.json").is_file()
        yield DiskUse(name, DATA, present, 0 if whole else max(0, expected_bytes(images, side) - present))
