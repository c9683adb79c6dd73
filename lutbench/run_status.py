"""How far a run has come, according to its folder, or another folder of the same identity."""

from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutbench.changes import changes
from lutbench.checkpoint_names import newest_step
from lutbench.errors import UserError, listed
from lutbench.files import DamagedError
from lutbench.run_files import FINISHED, Finished, read_finished, read_started
from lutbench.run_lookup import find_run
from lutbench.sources import differing

if TYPE_CHECKING:
    from lutbench.run import Run


class RunState(StrEnum):
    """How far a run has come."""

    FINISHED = "finished"
    RESUMABLE = "resumable"
    STALE = "stale"
    MISSING = "missing"
    UNKNOWN = "unknown"
    """Its data or weights are absent, without which its identity cannot be computed."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run has come, the details, and the folder that holds it."""

    state: RunState
    detail: str
    folder: Path
    damage: tuple[str, ...] = ()
    """A message about each damaged run that was skipped."""
    edited: str = ""
    """If the code has changed since a run finished, the name of that run: this one, or one that it depends on."""
    sources: tuple[str, ...] = ()
    """The source files that have changed since it finished."""
    made_as: str = ""
    """The name of a run that was found in another folder than its own, ``SUITE/RUN``."""

    def __str__(self) -> str:
        return f"{self.short} ({listed(self.sources)})" if self.sources else self.short

    @property
    def short(self) -> str:
        """The status without the changed source files."""
        return " ".join(filter(None, (self.state, self.made_as and f"as {self.made_as}", self.detail)))

    @property
    def counted(self) -> str:
        """The details with the number of changed source files: ``with different code (13 files)``."""
        files = len(self.sources)
        return f"{self.detail} ({files} file{'s' * (files > 1)})" if files else self.detail


def status_of(run: "Run[Any]") -> RunStatus:
    """Return whether a run is finished (and with which code), resumable at a step, stale because a setting changed, or missing."""
    damage: list[str] = []
    if (run.folder / FINISHED).is_file():
        try:
            left = read_finished(run.folder, run.identity)
            _check_recorded(run, left.checkpoint)
            return _finished(run, left, run.folder)
        except DamagedError as error:
            damage.append(str(error))
    found, damaged = find_run(run)
    damage += damaged
    if found is not None:
        return replace(_finished(run, found.finished, found.folder), damage=tuple(damage), made_as=found.name)
    if progress := progress_of(run):
        return RunStatus(RunState.RESUMABLE, progress, run.folder, tuple(damage))
    finished = {path.parent for path in run.home.glob(f"*/{FINISHED}")} - {run.folder}
    for other in sorted(finished, key=lambda folder: (folder / FINISHED).stat().st_mtime, reverse=True):
        try:
            read_finished(other)
            if changed := changes(read_started(other).document, run.identity_inputs):  # else --again repeats it
                return RunStatus(RunState.STALE, f"because {', '.join(changed)}", other, tuple(damage))
        except DamagedError as error:
            damage.append(str(error))
    return RunStatus(RunState.MISSING, "", run.folder, tuple(damage))


def progress_of(run: "Run[Any]") -> str:
    """Return where a run can resume in its own folder, ``at step 200`` or ``after 3 parts``; empty if it cannot."""
    if (step := newest_step(run.checkpoints)) is not None:
        return f"at step {step}"
    parts = sum(1 for _ in run.parts.glob("*.npz"))
    return f"after {parts} part{'s' if parts > 1 else ''}" if parts else ""


def _finished(run: "Run[Any]", left: Finished, folder: Path) -> RunStatus:
    """Return the status of a run that has finished in ``folder``, and with which code."""
    others, edited = differing(left.sources, run.planned), run.name
    detail = "with different code" if others else ""
    if not others and run.needs is not None and (before := status_of(run.needs)).edited:
        detail, others, edited = f"after {run.needs.name}, {before.detail}", list(before.sources), before.edited
    return RunStatus(RunState.FINISHED, detail, folder, edited=edited if detail else "", sources=tuple(others))


def _check_recorded(run: "Run[Any]", checkpoint: str | None) -> None:
    """Raise DamagedError if neither the run's folder nor the results have an intact record of it, with these weights."""
    for folder in (run.folder, run.workspace.results):
        with suppress(UserError):
            if (record := run.record(folder)) and record.checkpoint == checkpoint:
                return
    raise DamagedError(
        f"{run.folder / FINISHED} says that the run has finished, but there is no intact record of it, neither in its folder nor in "
        f"{run.workspace.results}. Restore one from a backup; without it the run counts as not finished."
    )


def waits(run: "Run[Any]") -> bool:
    """Return whether the run it depends on has not finished; that run's status then says why."""
    try:
        return run.needs is not None and run.needs.status().state is not RunState.FINISHED
    except UserError:
        return True


def unknown_because(run: "Run[Any]") -> str:
    """Return in a few words why a run's identity, and so its status, cannot be computed; empty if the run has certainly not begun.

    It has not begun if there is no run below ``--runs``, or the run it depends on has not finished.
    """
    if not run.workspace.run_folders:
        return ""
    if run.needs is not None:
        try:
            if run.needs.status().state is not RunState.FINISHED:
                return ""
        except UserError:
            return unknown_because(run.needs)
    dataset = run.recipe.dataset
    try:
        for split in run.recipe.splits:
            run.fingerprint(split)
    except UserError:
        return "data not found" if not (run.workspace.data / dataset.folder).exists() else "data not as expected"
    with suppress(UserError):
        if (weights := run.weights) is not None and weights.exists():
            return "weights not as expected"
    return "weights not found"


def weights_problem(run: "Run[Any]", finished: bool = False) -> str:
    """Return why a run cannot start from timm's or the user's weights, judged by tensor names and shapes; empty if it can.

    A finished run that starts from a run of the suite, or from scratch, is not checked.
    """
    source = run.recipe.source
    if finished and (source is None or source.kind in ("run", "scratch")):
        return ""
    try:
        getattr(run.planned.kind.module, "check_weights", lambda _: None)(run)
    except UserError as error:
        return str(error)
    return ""
