"""A run: its identity, its folder, and how far it has come.

The identity is a hash over everything that determines the result: the kind of run and its revision, the settings that
affect results, the seed, the data and the input weights. A run's folder is named after it, so a run with a changed recipe
never overwrites, resumes or replaces another.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from numpy.typing import NDArray
from pydantic import JsonValue

from lutbench.data.cache_place import cache_fingerprint
from lutbench.errors import UserError, named
from lutbench.evaluate.outcomes import Measurement, PerImage
from lutbench.files import DamagedError, below, remove_partials
from lutbench.finite import refused_numbers_explained
from lutbench.kinds import dataset_module
from lutbench.losses import LossCurve
from lutbench.models.preprocessing import Preprocessing, preprocessing_for
from lutbench.progress import console, is_first_process
from lutbench.recipes.base import EncoderRecipe, RunRecipe, TrainingSubset
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, identity_of, read_record, record_path
from lutbench.record_writing import copy_record, make_record, renamed_record, write_record
from lutbench.run_files import Started, read_started, write_finished, write_started, write_taken
from lutbench.run_hashes import known_sha256
from lutbench.run_lookup import find_run
from lutbench.run_status import RunState, RunStatus, progress_of, status_of
from lutbench.run_weights import weights_inputs, weights_of
from lutbench.sources import MIXED, sources_of
from lutbench.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

R = TypeVar("R", bound=RunRecipe, covariant=True)


@dataclass
class Run(Generic[R]):
    """A planned run in a workspace, with the run whose encoder or classifier it starts from."""

    planned: PlannedRun
    workspace: Workspace
    needs: "Run[Any] | None" = None
    given: str = ""
    """The suite as the command named it, for messages that say what to run."""

    @property
    def name(self) -> str:
        """The run's name, unique in its suite."""
        return self.planned.name

    @property
    def seed(self) -> int:
        """The seed of everything random in it."""
        return self.planned.seed

    @property
    def command(self) -> str:
        """The arguments of ``lutbench run`` for this suite and these folders, for messages that say what to run."""
        return f"{self.given}{self.workspace.options}"

    @property
    def recipe(self) -> R:
        """The settings of the run, of its kind's type."""
        return cast(R, self.planned.recipe)

    @property
    def trained(self) -> "Run[Any]":
        """The run that trained the model which it computes with: itself, unless it only evaluates the classifier of another run."""
        return self.needs if self.needs is not None and self.planned.kind.starts_from == "classifier" else self

    @property
    def architecture(self) -> EncoderRecipe | None:
        """The architecture of the encoder that it computes with; None for a classifier that no run trained."""
        encoder = getattr(self.trained.recipe, "encoder", None)
        return encoder if isinstance(encoder, EncoderRecipe) else getattr(encoder, "architecture", None)

    @cached_property
    def identity_inputs(self) -> dict[str, Any]:
        """What the identity is the hash of.

        Raises:
            NotRun: if its dataset is absent and optional.
            UserError: if its data or a file of weights is absent, or the run it depends on has not finished or left no weights.
        """
        recipe = self.recipe
        return {
            "stage": self.planned.kind.name,
            "revision": recipe.revision,
            "seed": self.seed,
            "recipe": recipe.affecting_results(),
            "data": {split: self.fingerprint(split) for split in recipe.splits},
            **({"smoke": self.planned.smoke} if self.planned.smoke else {}),
            **weights_inputs(self),
        }

    @cached_property
    def identity(self) -> str:
        """sha256 of the identity inputs, hexadecimal."""
        return identity_of(self.identity_inputs)

    @cached_property
    def sources(self) -> dict[str, str]:
        """Hashes of the source files that it depends on, taken on first access."""
        return sources_of(self.planned)

    @property
    def weights(self) -> Path | None:
        """The file of weights that it starts from, if there is one; see :func:`lutbench.run_weights.weights_of`."""
        return weights_of(self)

    @property
    def weights_sha256(self) -> str | None:
        """What the file of weights must hash to."""
        found: str | None = self.identity_inputs.get(self.planned.kind.starts_from, {}).get("sha256")
        return found

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that its initial weights were trained with; ImageNet's if there are none."""
        return preprocessing_for(self.recipe, self.weights if self.recipe.source else None, self.hash_of)

    def hash_of(self, weights: Path) -> str:
        """Return the sha256 of a file of weights; unchanged files are not read again, see :mod:`lutbench.run_hashes`."""
        return known_sha256(weights, self.workspace.runs / "checked")

    @property
    def home(self) -> Path:
        """The folder of all runs of this name, with any recipe."""
        return below(self.workspace.runs, self.planned.suite, self.name)

    @property
    def folder(self) -> Path:
        """The folder of the run with this identity, in which it is performed."""
        return self.home / self.identity[:12]

    @property
    def finished_in(self) -> Path:
        """The folder to read its results from; another run's if it was found there, see :mod:`lutbench.run_lookup`."""
        status = self.status()
        return status.folder if status.state is RunState.FINISHED else self.folder

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def parts(self) -> Path:
        """The folder of the finished parts of its result, for runs whose result has parts."""
        return self.folder / "cells"

    def dataset(self, split: str) -> Any:
        """Open one split of the recipe's dataset, as its module does; files are listed once per command.

        The training split is the subset that the recipe reads. Labels of val follow the class numbers of train.
        """
        recipe = self.recipe
        if recipe.cache_side is not None:
            return self.workspace.cached(recipe.dataset, recipe.cache_side)
        if split == "train" and recipe.training_subset is not None:
            return self._subset(recipe.training_subset)
        opened = self.workspace.open(recipe.dataset, split)
        align = getattr(dataset_module(recipe.dataset), "aligned", None)
        if align is not None and split == "val":
            return align(self.workspace.open(recipe.dataset, "train"), opened)
        return opened

    def _subset(self, chosen: TrainingSubset) -> Any:
        self.workspace.open(self.recipe.dataset, "train")  # an error in the whole split names no task
        with named(f"{self.planned.stage}.{self.planned.task}"):
            return self.workspace.subset(self.recipe.dataset, chosen)

    def fingerprint(self, split: str) -> str:
        """Return a hash of the content of a split; that of a cache is known before the cache exists."""
        recipe, side = self.recipe, self.recipe.cache_side
        if split == "train" and recipe.training_subset is not None:
            return str(self._subset(recipe.training_subset).fingerprint)
        dataset = self.workspace.open(recipe.dataset, split)
        if side is None:
            return str(dataset.fingerprint)
        return cache_fingerprint(dataset, side)

    def log(self, text: str) -> None:
        """Print a line about the run, once for all processes."""
        if is_first_process():
            console.print(f"{self.name}: {text}")

    def status(self) -> RunStatus:
        """Return how far it has come."""
        return status_of(self)

    def record(self, folder: Path) -> Record | None:
        """Return its record in ``folder``, the results or its own, without the record's files; None if there is none.

        Raises:
            UserError: if it is damaged.
        """
        path = record_path(folder, self.planned.suite, self.name)
        record = read_record(path, self.name) if path.is_file() else None
        own = record and (record.suite, record.run, record.identity) == (self.planned.suite, self.name, self.identity)
        return record if own else None

    def result(self) -> str:
        """Return its result in a line, ``top-1 81.2 % [79.4, 82.9]``: the metrics that its kind chooses, or the first; all numbers
        if they have no interval.

        Empty if neither the results nor another run's folder has a record of this identity. Raises UserError if the record in the
        results is damaged.
        """
        if (record := self.record(self.workspace.results)) is None and (found := find_run(self)[0]):
            record = found.record
        if record is None:
            return ""
        if record.measurements[0].low is not None:
            named = getattr(self.planned.kind.outcomes, "RESULT", ())
            told = [m for m in record.measurements if m.metric in named] or record.measurements[:1]
            return ", ".join(f"{m.metric} {m.text(m.unit)}" for m in told)
        return ", ".join(f"{m.metric} {m.value:.3f}{m.unit}" for m in record.measurements)

    def sweep(self) -> None:
        """Remove half-written files that killed processes left; call this only while the run is locked."""
        remove_partials(self.home)
        record = record_path(self.workspace.results, self.planned.suite, self.name)
        remove_partials(
            record.parent, f"{record.stem}[.-]*", spare_living=True
        )  # another's runs may go to these results

    def start(self) -> None:
        """Write down which run this folder is of, before anything else is written to it.

        If a run resumes, source files that changed since its start are marked as mixed, and it keeps the precision it began with. A
        run of an earlier version, whose folder does not have the precision, resumes in the current one and logs that.
        """
        from lutbench.train.precision import precision_at_start  # here, because it needs torch
        from lutbench.train.processes import precision_of

        precision: Literal["", "bf16", "fp32"] = precision_at_start(self)
        if before := self._begun:
            precision = before.precision or precision
            began = before.sources
            self.sources |= {
                path: MIXED for path in {*began, *self.sources} if began and began.get(path) != self.sources.get(path)
            }
        if self.recipe.precision == "auto" and not self.begun_in and (progress := progress_of(self)):
            precision = "bf16" if precision_of("auto") == "bf16" else "fp32"
            self.log(
                f"is resumable {progress}; the precision it began with was not saved, so it continues in {precision}. If it began in "
                f"another one, repeat it with --again {self.name} after it has finished."
            )
        write_started(self.folder, self.name, self.identity, self.identity_inputs, self.sources, precision)

    @property
    def begun_in(self) -> str:
        """The precision that it began with; empty if it has not begun, or its version did not save it."""
        return self._begun.precision if self._begun else ""

    @property
    def _begun(self) -> Started | None:
        """The contents of its ``run.json``; None if it has not begun, or the file is damaged."""
        try:
            return read_started(self.folder)
        except DamagedError:
            return None

    def set_aside(self) -> Path:
        """Rename its folder, so that the run starts from the beginning, and return the new path."""
        aside = self.folder.with_name(f"{self.folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}")
        self.folder.rename(aside)
        return aside

    def restore(
        self, modules: Mapping[str, "nn.Module"], optimizer: "Optimizer", steps: int
    ) -> tuple[int, dict[str, Any]]:
        """Load the newest intact checkpoint, if there is one; return the step to resume from, and the extra state."""
        from lutbench.checkpoint import (
            newest_checkpoint,  # here, as below: the status of a run needs no torch
        )

        checkpoint, damage = newest_checkpoint(
            self.checkpoints, self.identity, steps, lambda found: found.restore(modules, optimizer)
        )
        for line in damage:
            self.log(f"{line}.")
        if checkpoint is None:
            return 0, {}
        self.log(f"resumes from step {checkpoint.step}.")
        return checkpoint.step, checkpoint.extra_state

    def save(
        self, step: int, modules: Mapping[str, "nn.Module"], optimizer: "Optimizer", extra_state: Mapping[str, Any]
    ) -> None:
        """Save a checkpoint, from the first process.

        Raises:
            UserError: on every process, if a weight or the optimiser's state is not finite; on a full disk.
        """
        from lutbench.checkpoint import Checkpoint, finite_state, save_checkpoint
        from lutbench.train.processes import accelerator

        tensors = finite_state(modules, optimizer, f"{self.name}, after step {step}")
        if accelerator().is_main_process:
            save_checkpoint(self.checkpoints, self.identity, Checkpoint(step, tensors, dict(extra_state)))
        accelerator().wait_for_everyone()

    def save_results(
        self,
        results: PerImage | Sequence[Measurement],
        *,
        seconds: float,
        images_per_second: float | None = None,
        checkpoint: str | None = None,
        extra: Mapping[str, JsonValue] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        pictures: Mapping[str, bytes] | None = None,
        files: Sequence[str] = (),
        curve: LossCurve | None = None,
    ) -> None:
        """Write the record to the results, with a copy in the run's own folder, and mark the run finished.

        Call this from the first process only. ``results`` are the per-image outcomes or, for a kind without them, the
        measurements; ``seconds`` is the time of training, encoding and evaluation, see :class:`lutbench.record.Record`;
        ``checkpoint`` is the sha256 of the final weights; ``arrays`` and ``pictures`` (PNG) are kept with the record; ``files``
        are other files in the run's folder that will be read again, and are hashed now; ``curve`` has the training losses.

        Raises:
            UserError: on a full disk, or if a number is not finite.
        """
        from lutbench.train.processes import accelerator, precision_of

        outcomes = results if isinstance(results, PerImage) else None
        with refused_numbers_explained(self.name):
            record = make_record(
                self.planned,
                self.identity_inputs,
                results.measurements() if isinstance(results, PerImage) else results,
                wall_seconds=seconds,
                images_per_second=images_per_second,
                checkpoint=checkpoint,
                processes=accelerator().num_processes,
                sources=self.sources,
                extra={**(extra or {}), "precision": precision_of(self.recipe.precision)},
                curve=curve,
            )
        for folder in (self.folder, self.workspace.results):
            write_record(record, outcomes, folder, arrays=arrays, pictures=pictures)
        write_finished(self.folder, self.identity, checkpoint, self.sources, files)
        if skipped := (extra or {}).get("skipped"):
            self.log(f"images skipped because they cannot be decoded: {skipped:,}.")

    def restore_record(self) -> None:
        """Copy the record of this finished run to the results, unless it is there already, intact and with all its files.

        It may be missing there because it was removed or damaged, replaced by the record of another recipe, or because the results
        folder is a new one. If the run was found in another run's folder, that record is copied under this run's name, and this run's
        folder gets a reference to the other one.

        Raises:
            UserError: if the record in the run's folder is damaged too; on a full disk.
        """
        found = find_run(self)[0] if self.status().made_as else None
        if found is not None:
            write_taken(self.folder, self.identity, found.folder)
        with suppress(UserError):
            if there := self.record(self.workspace.results):
                for file in there.files:
                    there.content(file)
                return
        if found is not None:
            copy_record(renamed_record(found.record, self.planned), self.workspace.results)
        elif kept := self.record(self.folder):
            copy_record(kept, self.workspace.results)


def open_run(suite: LoadedSuite, planned: PlannedRun, workspace: Workspace) -> Run[Any]:
    """Return a run of a suite with the run it depends on. Opens nothing: the identity is computed on first access."""
    needed = open_run(suite, suite.run(planned.needs), workspace) if planned.needs else None
    return Run(planned, workspace, needed, suite.given)


def open_runs(suite: LoadedSuite, workspace: Workspace) -> dict[str, Run[Any]]:
    """Return the runs of a suite by name, like :func:`open_run`; a run that several depend on is one object with one identity."""
    runs: dict[str, Run[Any]] = {}
    for planned in suite.runs:  # each after the one that it needs
        runs[planned.name] = Run(planned, workspace, runs[planned.needs] if planned.needs else None, suite.given)
    return runs


def row_named(run: Run[Any]) -> AbstractContextManager[None]:
    """Return a context that puts the run's table, and its row if it starts from weights, before the message of an error."""
    planned = run.planned
    row = "" if planned.kind.starts_from == "nothing" else f", row {planned.method}"
    return named(f"{planned.stage}.{planned.task}", row)
