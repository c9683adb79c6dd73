"""Measured speeds of pre-training, for budgets in seconds: from records of one machine, and then kept.

The speeds of two runs come from their records, those of any seed and of any number of epochs whose other settings are the suite
file's, first those of this suite and then any other's; the machine is the same if processor, cores, threads, processes and GPUs are.
They are looked for in the results and, before these, in ``RESULTS/speed``: results of their own for runs of one epoch that are made to
measure, and disturb no other record.

``lutbench run`` keeps the two speeds that it used, sealed, in ``RESULTS/speed/budgets/RUN-SETTINGS.json``. From then on they
are the speeds of these settings, whatever is measured later: the epochs of a run that has begun do not change. To measure anew,
remove the file.
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
"""The folder below the results that has the records of runs that were made to measure, and the speeds that are kept."""

LENGTH = ("epochs", "warmup_epochs")
"""The settings that change how long a run is, and not how fast."""

READING = ("source", "path", "train")
"""The settings of a dataset that say where its images lie."""

FEW = 100
"""Optimiser steps below which a speed is a poor one: a loader that starts, and a machine that is busy for seconds, are much of it (our
choice: 16 steps gave ratios of two runs that were 1.8 times those of 180)."""


class Speed(BaseModel):
    """How fast a run was."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    identity: str
    """Of the run that was measured, as its record has it."""
    images_per_second: PositiveFloat
    steps: int | None = None
    """Optimiser steps that it was measured over, where the record tells."""

    @property
    def is_poor(self) -> bool:
        """Whether that is few."""
        return self.steps is not None and self.steps < FEW


class Speeds(BaseModel):
    """How fast two runs were on one machine; a file that is kept."""

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
    """Return the seconds that two runs take for an image, on which machine that was measured, the file that keeps it, and which of them
    is poor, a sentence.

    ``names`` and ``recipes`` are of the run with the budget and of the other; ``budgets`` names all runs of the suite that have one in
    seconds, for the command that measures.

    Raises:
        UserError: if a run was not measured, or not on the same machine as the other; if a record, or what was kept, is damaged.
    """
    settings = [
        without_length(recipe.affecting_results(), without_machine_paths(recipe.model_dump(mode="json")))
        for recipe in recipes
    ]
    kept = where.results / FOLDER / "budgets" / f"{names[0]}-{content_sha256({'of': settings})[:12]}.json"
    if kept.is_file():
        speeds = read_sealed(kept, Speeds, "Remove it: the speeds are then taken from the records again.")
    else:
        speeds = _measured(where, seeds, names, settings, budgets)
        if where.keep:
            write_sealed(kept, speeds.model_dump(mode="json"))
    own, like = (1 / speed.images_per_second for speed in (speeds.own, speeds.like))
    return own, like, str(speeds.hardware), kept if kept.is_file() else None, _poor(speeds)


def _poor(speeds: Speeds) -> str:
    """Return which speeds were measured over few steps; empty if none was."""
    found = [f"{one.run} over {one.steps}" for one in (speeds.own, speeds.like) if one.is_poor]
    return (
        f"Its speed is a poor one, measured over few steps ({' and '.join(found)}): measure over {FEW} or more, with more epochs"
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
    """Return the speeds of the first two records that are of one machine, if there are of those that are not poor."""
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
            f"{at}: its unit is seconds, and the speed of {' and '.join(f'pretrain.{name}' for name in missing)} "
            f"is not known: {places} have no record of these settings, of any number of epochs."
        )
    else:
        problem = (
            f"{at}: its unit is seconds, and {places} have no records of both runs on one machine, but of pretrain.{names[0]} on "
            f"{own[0].hardware} and of pretrain.{names[1]} on {like[0].hardware}."
        )
    command = _command(where, seeds[0], missing or names, budgets)
    raise UserError(
        f"{problem} An epoch on the machine that both are for is enough if it has {FEW} steps, with your folders of data and runs: {command}. Or compare FLOP, "
        'which need no run: unit = "flop".'
    )


def _command(where: MeasuredIn, seed: int, names: Sequence[str], budgets: Sequence[str]) -> str:
    """Return what measures runs: an epoch of each, and no budget that would have to be known before."""
    chosen = [f"--only {run_name('pretrain', name, '', seed)}" for name in names]
    lengths = [
        f"--set pretrain.{name}.epochs=1 --set pretrain.{name}.warmup_epochs=0"
        for name in dict.fromkeys([*names, *budgets])
    ]
    return " ".join(["lutbench run", where.given, *chosen, *lengths, f"--results {quote(str(where.results / FOLDER))}"])


def _records(where: MeasuredIn, seeds: Sequence[int], name: str, settings: Mapping[str, Any]) -> list[Record]:
    """Return the records of a run with these settings that tell its speed: those that were made to measure first, then this suite's."""
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
                continue  # another suite's, which is not asked for
            if record.images_per_second and without_length(record.identity_inputs["recipe"], record.recipe) == settings:
                found.append(record)
    return found


def without_length(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the speed of a run depends on: the settings that affect results, and of its ``recipe`` which images it reads, and how."""
    data = recipe.get("data") or {}
    reading = {name: data.get(name) for name in READING} | {"cache": recipe.get("cache", False)}
    return {name: value for name, value in settings.items() if name not in LENGTH} | {"reading": reading}


def _machine(hardware: Hardware) -> dict[str, Any]:
    """Return what tells machines apart: memory does not, of which a system sees a little more or less after an update."""
    return hardware.model_dump(exclude={"memory_gib"})


def _speed(record: Record) -> Speed:
    assert record.images_per_second is not None
    recipe, images = record.identity_inputs["recipe"], record.extra.get("training_images")
    steps = ceil(recipe["epochs"] * images / recipe["batch"]) if isinstance(images, int) else None
    return Speed(run=record.run, identity=record.identity, images_per_second=record.images_per_second, steps=steps)
