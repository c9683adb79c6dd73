"""Finished runs on this machine with the same settings: images per second, from any suite and under any name, and time."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lutbench.files import content_sha256
from lutbench.provenance import Hardware, hardware
from lutbench.recipes.speeds import FOLDER, without_length
from lutbench.record import Record
from lutbench.record_search import intact_records
from lutbench.record_writing import without_machine_paths
from lutbench.run import Run

PART = ("shots", "share", "subset", "draw")
"""Settings that change how many images a run reads, but not how fast."""


def measured_alike(results: Path) -> Callable[[Run[Any]], Record | None]:
    """Return a function that finds the record with the speed of a run, or None; it reads the records on its first call.

    The record is of a run of the same kind, settings and architecture on this machine, of any length, seed and weights. If there are
    several, it is the one that took longest, because its speed is the most certain.
    """

    @cache
    def all_records() -> Mapping[str, Record]:
        """Return the records of this machine that have a speed, by the key of their settings."""
        found: dict[str, Record] = {}
        paths = (path for folder in (results, results / FOLDER) for path in sorted(folder.glob("records/**/*.json")))
        for record in intact_records(paths):
            if record.images_per_second and _is_here(record.hardware):
                recipe = record.identity_inputs["recipe"]
                label = record.recipe.get("classifier", {}).get("encoder", "")
                key = _key(record.kind.name, without_length(recipe, record.recipe), label)
                found[key] = max(found.get(key, record), record, key=lambda one: one.wall_seconds)
        return found

    def find(run: Run[Any]) -> Record | None:
        kind, recipe = run.planned.kind, run.recipe
        label = recipe.encoder_label if kind.starts_from == "classifier" else ""
        own = without_machine_paths(recipe.model_dump(mode="json"))
        return all_records().get(_key(kind.name, without_length(recipe.affecting_results(), own), label))

    return find


def is_repeated(run: Run[Any], record: Record, gpus: int) -> bool:
    """Return whether a record is of a run with the same settings, but for seed and draw, on this machine with as many GPUs."""
    done, own = record.identity_inputs["recipe"], run.recipe.affecting_results()
    same = content_sha256({**done, "draw": None}) == content_sha256({**own, "draw": None})
    return same and _is_here(record.hardware) and max(1, len(record.hardware.gpus)) == gpus


def _key(kind: str, recipe: Mapping[str, Any], label: str) -> str:
    """Return a hash of everything that the speed of a run depends on; ``label`` is that of a classifier's architecture."""
    settings = {name: value for name, value in recipe.items() if name not in PART}
    if "architecture" in (encoder := settings.get("encoder", {})):  # where its weights come from does not matter
        settings["encoder"] = encoder["architecture"]
    return content_sha256({"kind": kind, "settings": settings, "classifier": label})


def _is_here(one: Hardware) -> bool:
    """Return whether a record was made on this machine, with any number of processes."""
    here = hardware(one.processes)
    return all(getattr(one, name) == getattr(here, name) for name in ("system", "cpu", "cores", "gpus"))
