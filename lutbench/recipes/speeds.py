"""Measured speeds of pre-training runs, for budgets in seconds.

The speeds of two runs are read from their records: of any seed and number of epochs, with all other settings as in the suite file; first
records of this suite, then of others. Both must come from the same machine: equal processor, cores, threads, processes and GPUs. Records
are searched first in ``RESULTS/speed``, a separate results folder for runs of one epoch made only to measure speed, then in RESULTS.

``lutbench run`` stores the two speeds that it used in ``RESULTS/speed/budgets/RUN-SETTINGS.json``. From then on these speeds are used for
these settings, whatever is measured later, so that the epochs of a run do not change after it started. Remove the file to measure again.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat

from lutbench.errors import UserError
from lutbench.files import content_sha256, read_sealed, write_sealed
from lutbench.provenance import Hardware
from lutbench.recipes.budget import MeasuredIn
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.suite import run_name
from lutbench.record import Record, read_record, record_path
from lutbench.record_writing import without_machine_paths

FOLDER = "speed"
"""Subfolder of the results with records of speed measurements, and the speeds that are in use."""

LENGTH = ("epochs", "warmup_epochs")
"""The settings that change the length of a run but not its speed."""

READING = ("source", "path", "train")
"""The settings of a dataset that locate its images."""

FEW = 100
"""Number of optimiser steps below which a measured speed counts as inaccurate, because loader start-up and short load on the machine
distort it (our choice: with 16 steps, the speed ratio of two runs was 1.8 times that with 180 steps)."""


class Speed(BaseModel):
    """Measured speed of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    identity: str
    """Identity of the measured run, from its record."""
    images_per_second: PositiveFloat
    steps: int | None = None
    """Number of optimiser steps of the measurement, if the record has it."""

    @property
    def is_poor(self) -> bool:
        """Whether the measurement is inaccurate because it has few steps."""
        return self.steps is not None and self.steps < FEW


class Speeds(BaseModel):
    """Speeds of two runs on one machine, as stored in a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    own: Speed
    like: Speed
    hardware: Hardware


def seconds_per_image(
    where: MeasuredIn,
    seeds: Sequence[int],
    names: tuple[str, str],
    recipes: tuple[PretrainRecipe, PretrainRecipe],
    budgets: Sequence[str],
) -> tuple[float, float, str, Path | None, str]:
    """Return the seconds per image of two runs, the machine, the file with the speeds, and a warning if a speed is inaccurate.

    ``names`` and ``recipes`` are those of the run with the budget and of the other run; ``budgets`` names all runs of the suite with a
    budget in seconds, for the command that measures.

    Raises:
        UserError: if a run was not measured, or not on the same machine as the other; if a record or the file with speeds is damaged.
    """
    settings = [
        without_length(recipe.affecting_results(), without_machine_paths(recipe.model_dump(mode="json")))
        for recipe in recipes
    ]
    kept = where.results / FOLDER / "budgets" / f"{names[0]}-{content_sha256({'of': settings})[:12]}.json"
    if kept.is_file():
        speeds = read_sealed(kept, Speeds, "Remove the file: the speeds are then read from the records again.")
    else:
        speeds = _measured(where, seeds, names, settings, budgets)
        if where.keep:
            write_sealed(kept, speeds.model_dump(mode="json"))
    own, like = (1 / speed.images_per_second for speed in (speeds.own, speeds.like))
    return own, like, str(speeds.hardware), kept if kept.is_file() else None, _poor(speeds)


def _poor(speeds: Speeds) -> str:
    """Return a warning with the speeds that were measured over few steps; empty if there are none."""
    found = [f"{one.run} over {one.steps}" for one in (speeds.own, speeds.like) if one.is_poor]
    return (
        f"The speed is inaccurate, measured over few steps ({' and '.join(found)}): measure with more epochs, over at least {FEW} steps"
        if found
        else ""
    )


def _measured(
    where: MeasuredIn,
    seeds: Sequence[int],
    names: tuple[str, str],
    settings: Sequence[Mapping[str, Any]],
    budgets: Sequence[str],
) -> Speeds:
    """Return the speeds from the first two records of the same machine, preferring accurate ones."""
    own, like = (list(_records(where, seeds, name, of)) for name, of in zip(names, settings, strict=True))
    pairs = [
        Speeds(own=_speed(one), like=_speed(other), hardware=one.hardware)
        for one, other in product(own, like)
        if _machine(one.hardware) == _machine(other.hardware)
    ]
    if pairs:
        return min(pairs, key=lambda pair: pair.own.is_poor + pair.like.is_poor)
    at, places = f"pretrain.{names[0]}.budget", f"{where.results} and {where.results / FOLDER}"
    missing = [name for name, found in zip(names, (own, like), strict=True) if not found]
    if missing:
        problem = (
            f'{at}: unit = "seconds" needs the measured speed of {" and ".join(f"pretrain.{name}" for name in missing)}, '
            f"but {places} have no record with these settings (of any number of epochs)."
        )
    else:
        problem = (
            f'{at}: unit = "seconds" needs speeds of both runs measured on the same machine, but {places} have records of pretrain.{names[0]} on '
            f"{own[0].hardware} and of pretrain.{names[1]} on {like[0].hardware}."
        )
    command = _command(where, seeds[0], missing or names, budgets)
    raise UserError(
        f"{problem} Measure both on the machine you will use; one epoch is enough if it has {FEW} steps (add your --data-root and --runs): "
        f'{command}. Or use unit = "flop", which needs no measurement.'
    )


def _command(where: MeasuredIn, seed: int, names: Sequence[str], budgets: Sequence[str]) -> str:
    """Return the command that measures the runs: one epoch each, with budgets in seconds replaced by epochs."""
    chosen = [f"--only {run_name('pretrain', name, '', seed)}" for name in names]
    lengths = [
        f"--set pretrain.{name}.epochs=1 --set pretrain.{name}.warmup_epochs=0"
        for name in dict.fromkeys([*names, *budgets])
    ]
    return " ".join(["lutbench run", where.given, *chosen, *lengths, f"--results {quote(str(where.results / FOLDER))}"])


def _records(where: MeasuredIn, seeds: Sequence[int], name: str, settings: Mapping[str, Any]) -> list[Record]:
    """Return the records of a run with these settings and a speed: speed measurements first, then records of this suite, then others."""
    found = []
    for folder in (where.results / FOLDER, where.results):
        own = [record_path(folder, where.suite, run_name("pretrain", name, "", seed)) for seed in seeds]
        others = sorted((folder / "records").glob("*/pretrain/*/*.json"))
        for path in dict.fromkeys([*(path for path in own if path.is_file()), *others]):
            try:
                record = read_record(path)
            except UserError:
                if path in own:
                    raise
                continue  # a damaged record of another suite does not matter
            if record.images_per_second and without_length(record.identity_inputs["recipe"], record.recipe) == settings:
                found.append(record)
    return found


def without_length(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the speed of a run depends on: settings that affect results, except its length, and how ``recipe`` reads images."""
    data = recipe.get("data") or {}
    reading = {name: data.get(name) for name in READING} | {"cache": recipe.get("cache", False)}
    return {name: value for name, value in settings.items() if name not in LENGTH} | {"reading": reading}


def _machine(hardware: Hardware) -> dict[str, Any]:
    """Return the fields that identify a machine, without memory: a system update can change it slightly."""
    return hardware.model_dump(exclude={"memory_gib"})


def _speed(record: Record) -> Speed:
    assert record.images_per_second is not None
    recipe, images = record.identity_inputs["recipe"], record.extra.get("training_images")
    steps = ceil(recipe["epochs"] * images / recipe["batch"]) if isinstance(images, int) else None
    return Speed(run=record.run, identity=record.identity, images_per_second=record.images_per_second, steps=steps)
