"""A run: its identity, its folder, and what of it is already there.

The identity is a hash over everything that determines the result: the stage and its revision, the settings that
affect results, the seed, the data and the encoder that goes in. A run's folder is named by it, so a changed recipe
never overwrites, resumes or passes for another.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn
from torch.optim import Optimizer

from lutbench.checkpoint import newest_checkpoint, newest_step, save_checkpoint
from lutbench.data.images import ImageDataset, Split
from lutbench.data.scenes import SegmentationDataset
from lutbench.errors import UserError, listed, nearest
from lutbench.files import read_json, write_json
from lutbench.models.weights import sha256_of
from lutbench.progress import console
from lutbench.recipes import (
    ClassificationRecipe,
    PretrainRecipe,
    SegmentationRecipe,
)
from lutbench.recipes.robustness import RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import (
    PerImage,
    Record,
    changes,
    identity_of,
    read_outcomes,
    read_record,
    record_path,
    write_record,
)
from lutbench.train.processes import accelerator
from lutbench.workspace import Workspace
from robustness.datasets import DatasetState


class NotRun(UserError):
    """A run of a shifted set that is not there: it is left out, and said to be."""


class RunState(StrEnum):
    """How far a run has come."""

    FINISHED = "finished"
    RESUMABLE = "resumable"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True)
class RunStatus:
    """A run's state and what there is to say about it."""

    state: RunState
    detail: str
    folder: Path


@dataclass
class Run:
    """A planned run with its identity, ready to be started, resumed or found finished."""

    planned: PlannedRun
    workspace: Workspace
    document: dict[str, Any]
    """What the identity is the hash of."""
    weights: Path | None = None
    """The encoder that it starts from, or the classifier that it measures."""

    @cached_property
    def identity(self) -> str:
        """sha256 of the document, hexadecimal."""
        return identity_of(self.document)

    @property
    def home(self) -> Path:
        """Of all runs of this name, whatever their recipe."""
        return self.workspace.runs / self.planned.suite / self.planned.name

    @property
    def folder(self) -> Path:
        """Of this very recipe."""
        return self.home / self.identity[:12]

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.folder / "checkpoints"

    @property
    def cells(self) -> Path:
        """Where the outcomes of a shifted set go, as soon as a cell is measured."""
        return self.folder / "cells"

    def images(self, split: Split) -> ImageDataset:
        """The images of one split of the recipe's data."""
        recipe = self.planned.recipe
        assert isinstance(recipe, PretrainRecipe | ClassificationRecipe)
        if isinstance(recipe, PretrainRecipe) and recipe.cache:
            return self.workspace.cached(recipe.data, recipe.encoder.image_size)
        return self.workspace.images(recipe.data, split)

    def scenes(self, split: Split) -> SegmentationDataset:
        """The images and masks of one split of a segmentation recipe's data."""
        recipe = self.planned.recipe
        assert isinstance(recipe, SegmentationRecipe)
        return self.workspace.scenes(recipe.data, split)

    def log(self, text: str) -> None:
        """Print a line about the run, once."""
        if accelerator().is_main_process:
            console.print(f"{self.planned.name}: {text}")

    def status(self) -> RunStatus:
        """Finished, resumable at a step, stale because a field changed, or missing."""
        if (self.folder / "finished.json").is_file():
            return RunStatus(RunState.FINISHED, "", self.folder)
        step = newest_step(self.checkpoints)
        if step is not None:
            return RunStatus(RunState.RESUMABLE, f"at step {step}", self.folder)
        if cells := sum(1 for _ in self.cells.glob("*.npz")):
            return RunStatus(RunState.RESUMABLE, f"after {cells} cells", self.folder)
        others = sorted(self.home.glob("*/finished.json"), key=lambda p: p.stat().st_mtime)
        if others:
            changed = changes(read_json(others[-1].with_name("run.json"))["document"], self.document)
            return RunStatus(RunState.STALE, f"because {', '.join(changed)}", others[-1].parent)
        return RunStatus(RunState.MISSING, "", self.folder)

    def result(self) -> str:
        """What its record says, in a few words; empty if it has none of this identity."""
        path = record_path(self.workspace.results, self.planned.suite, self.planned.name)
        if not path.is_file():
            return ""
        record = read_record(path)
        return summary(record) if record.identity == self.identity else ""

    def start(self) -> None:
        """Write down what this folder is of, before anything else is in it."""
        write_json(
            self.folder / "run.json", {"name": self.planned.name, "identity": self.identity, "document": self.document}
        )

    def restore(self, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
        """Load the newest whole checkpoint, if there is one: the step to go on from, and the facts kept with it."""
        checkpoint, damage = newest_checkpoint(self.checkpoints, self.identity)
        for line in damage:
            self.log(f"{line}.")
        if checkpoint is None:
            return 0, {}
        checkpoint.restore(modules, optimizer)
        self.log(f"goes on from step {checkpoint.step}.")
        return checkpoint.step, checkpoint.facts

    def save(self, step: int, modules: Mapping[str, nn.Module], optimizer: Optimizer, facts: Mapping[str, Any]) -> None:
        """Save a checkpoint, from the first process."""
        if accelerator().is_main_process:
            save_checkpoint(self.checkpoints, self.identity, step, modules, optimizer, facts)
        accelerator().wait_for_everyone()

    def record(self, record: Record, outcomes: PerImage | None) -> None:
        """Write the record to the results, and a copy into the run's own folder."""
        for folder in (self.folder, self.workspace.results):
            write_record(record, outcomes, folder)

    def restore_record(self) -> None:
        """Put the record of this finished run into the results, if none of this very recipe is there.

        It was removed, another recipe's stands in its place, or the results are kept elsewhere now.
        """
        path = record_path(self.folder, self.planned.suite, self.planned.name)
        if self.result() or not path.is_file():
            return
        record = read_record(path)
        outcomes = read_outcomes(record, self.folder) if record.outcomes else None
        write_record(record, outcomes, self.workspace.results)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the run finished: the last thing it writes."""
        write_json(self.folder / "finished.json", dict(facts))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other command from this run meanwhile.

        Raises:
            UserError: naming the process that holds it already.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.home / ".lock")
        holder = self.home / ".holder.json"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = read_json(holder) if holder.is_file() else {}
            raise UserError(
                f"{self.planned.name} is being run already, by process {who.get('process', 'unknown')} on "
                f"{who.get('machine', 'unknown')} since {who.get('since', 'unknown')}. Wait for it, or stop it first."
            ) from None
        try:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(holder, {"process": os.getpid(), "machine": platform.node(), "since": since})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def open_run(suite: LoadedSuite, planned: PlannedRun, workspace: Workspace) -> Run:
    """The run with its identity, which needs its data and the encoder it starts from or the classifier it measures.

    Raises:
        NotRun: if nothing of its shifted set is there.
        UserError: if the data is not there, or the run that it needs has not finished; says what to run first.
    """
    recipe = planned.recipe
    document: dict[str, Any] = {
        "stage": "pretrain" if isinstance(recipe, PretrainRecipe) else recipe.kind,  # type: ignore[attr-defined]
        "revision": recipe.revision,
        "seed": planned.seed,
        "recipe": recipe.affecting_results(),
        "data": _fingerprints(planned, workspace),
    }
    measured = isinstance(recipe, RobustnessRecipe)
    part = "classifier" if measured else "encoder"
    weights = None
    if planned.needs is not None:
        needed = needed_run(suite, planned, workspace)
        weights = needed.folder / f"{part}.safetensors"
        facts = read_json(needed.folder / "finished.json")
        document[part] = {"run": needed.identity, "sha256": facts["checkpoint" if measured else "encoder"]}
    elif checkpoint := checkpoint_of(planned):
        weights = checkpoint
        document[part] = {"sha256": sha256_of(weights)}
    elif measured:
        document[part] = {}  # timm's, by the name in the recipe
    return Run(planned, workspace, document, weights)


def checkpoint_of(planned: PlannedRun) -> Path | None:
    """The user's file of weights that a run starts from, if it does.

    Raises:
        UserError: if it is not there.
    """
    recipe = planned.recipe
    source: Any = recipe.classifier if isinstance(recipe, RobustnessRecipe) else getattr(recipe, "encoder", None)
    if getattr(source, "kind", "") != "checkpoint":
        return None
    weights = Path(source.path).expanduser()
    if not weights.is_file():
        table = "classifier" if isinstance(recipe, RobustnessRecipe) else "method"
        raise UserError(f"{table}.{planned.method}.checkpoint: there is no file {weights}.")
    return weights


def _fingerprints(planned: PlannedRun, workspace: Workspace) -> dict[str, str]:
    recipe = planned.recipe
    if isinstance(recipe, RobustnessRecipe):
        found = workspace.shifted(recipe.set)
        if found.state is DatasetState.ABSENT and recipe.set.source != "folder":
            raise UserError(f"{found.name} is not at {found.where} yet: it is made when it is first measured.")
        if found.state is DatasetState.ABSENT:
            raise NotRun(f"{planned.name}: not run: {found.name} is not at {found.where}: {found.problems[0]}")
        return {"test": found.fingerprint}
    assert isinstance(recipe, PretrainRecipe | ClassificationRecipe | SegmentationRecipe)
    if isinstance(recipe, PretrainRecipe) and recipe.cache:
        from lutbench.data.cache import cache_fingerprint  # here, because datasets takes a second to import

        return {"train": cache_fingerprint(workspace.images(recipe.data, "train"), recipe.encoder.image_size)}
    splits: tuple[Split, ...] = ("train",) if isinstance(recipe, PretrainRecipe) else ("train", "val")
    return {split: workspace.fingerprint(recipe.data, split) for split in splits}


def needed_run(suite: LoadedSuite, planned: PlannedRun, workspace: Workspace) -> Run:
    """The finished run whose encoder ``planned`` starts from, or whose classifier it measures.

    Raises:
        UserError: if it has not finished, with the command that runs it.
    """
    other = next(run for run in suite.runs if run.name == planned.needs)
    run = open_run(suite, other, workspace)
    status = run.status()
    if status.state is not RunState.FINISHED:
        told = f"{status.state} {status.detail}".strip()
        measured = isinstance(planned.recipe, RobustnessRecipe)
        uses = "measures the classifier" if measured else "starts from the encoder"
        raise UserError(
            f"{planned.name} {uses} of {other.name}, which is {told}. "
            f"First run: nox -s {other.stage} -- {suite.given} (or: lutbench run {suite.given} --stage {other.stage})."
        )
    return run


def finished_folder(name: str, runs: Path) -> Path:
    """The folder of a finished run, by its folder or by ``SUITE/NAME`` below ``runs``; of several recipes the latest.

    Raises:
        UserError: if there is none; names those that there are.
    """
    for home in (Path(name), runs / name):
        if (home / "finished.json").is_file():
            return home
        finished = sorted(home.glob("*/finished.json"), key=lambda path: path.stat().st_mtime)
        if finished:
            return finished[-1].parent
    known = sorted({path.parents[1].relative_to(runs).as_posix() for path in runs.glob("**/finished.json")})
    raise UserError(
        f"There is no finished run {name!r} in {runs.absolute()}.{nearest(name, known)} Finished there: {listed(known) or 'none'}."
    )


def summary(record: Record) -> str:
    """``top-1 81.2 % [79.4, 82.9]``: the measurement that tables print, or all losses of a pre-training run."""
    first = record.measurements[0]
    if first.low is not None and first.high is not None:
        return f"{first.metric} {first.value:.1f} {first.unit} [{first.low:.1f}, {first.high:.1f}]"
    return ", ".join(f"{m.metric} {m.value:.3f}{m.unit}" for m in record.measurements)
