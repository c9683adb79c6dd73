"""Check the runs of a suite, and run them in order."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from lutbench.allocator import keep_freed_memory
from lutbench.errors import Halt, NotRun, UserError
from lutbench.garbage import collect_as_usual
from lutbench.interruption import interruption_explained
from lutbench.locks import Held, held_in, lock
from lutbench.models.preprocessing import IMAGENETS
from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite
from lutbench.refusals import Failures, check_run, paragraphs, warnings
from lutbench.run import Run, open_run
from lutbench.run_lookup import begun_elsewhere, check_found
from lutbench.run_status import RunState, progress_of
from lutbench.train.precision import precision_at_start, processors_multiply_bf16
from lutbench.train.processes import accelerator, computing_in
from lutbench.workspace import Workspace

THREADS = torch.get_num_threads()
"""The number of threads that torch chose, from the cores and ``OMP_NUM_THREADS``."""


def run_suite(
    suite: LoadedSuite,
    stages: Sequence[str],
    only: Sequence[str],
    workspace: Workspace,
    again: Sequence[str] = (),
    jobs: int = 1,
) -> None:
    """Run the chosen runs, each after the run it depends on; a run that fails does not stop the others.

    Finished runs that ``again`` names are repeated; their old folders are renamed and kept.

    All runs are checked before the first one starts. Runs on an optional dataset that is absent are left out. A run that
    another command is running is skipped, and tried again after the others. Several processes cannot agree on what to skip,
    so there the first error ends the command.

    With ``jobs`` > 1, that many runs go in parallel, see :mod:`lutbench.jobs.side_by_side`.

    Raises:
        UserError: at the end, with the runs that were not completed and the reasons: data is missing or does not fit, an encoder
            cannot be built, a batch does not divide over the processes, a run that was not chosen has to run first, or an
            error occurred. At once, if no run can start or a folder cannot be created.
        Halt: at once, if nothing can be saved or the user asked to stop.
    """
    if jobs > 1 and (processes := accelerator().num_processes) > 1:
        raise UserError(
            f"--jobs {jobs}: torchrun started {processes} processes, which do one run at a time together. Leave --jobs out; or start "
            "lutbench without torchrun, to do runs of one process each in parallel."
        )
    if jobs > 1:
        torch.set_num_threads(1)  # for the checks: a process whose torch computed on several threads cannot be forked
    runs = [open_run(suite, planned, workspace) for planned in suite.chosen(stages, only)]
    if not runs and accelerator().is_main_process:
        console.print(f"Suite {suite.name} has no runs of stage {' or '.join(stages)}.")
    repeated = {planned.name for planned in suite.chosen(stages, again, "--again")} if again else set()
    failures = Failures(suite)
    to_do = _startable(runs, repeated, failures)
    if failures.reasons and not to_do:
        raise UserError(failures.summary(len(runs)))
    if failures.reasons:
        console.print(failures.summary(len(runs)))
        failures.told |= set(failures.reasons)
    _print_notes(suite, to_do)
    workspace.make()
    _share_run_folders(workspace)
    collect_as_usual()
    if jobs > 1 and len(to_do) > 1:
        from lutbench.jobs.side_by_side import side_by_side  # here, because it needs this module

        side_by_side(to_do, repeated, failures, jobs)
    else:
        if unused := _unused_devices(to_do):
            console.print(unused)
        _in_order(to_do, repeated, failures, alone=len(runs) == 1)
    if failures.reasons:
        raise UserError(failures.summary(len(runs)))


def _startable(runs: Sequence[Run[Any]], repeated: Collection[str], failures: Failures) -> list[Run[Any]]:
    """Check the runs, and return those that can start; runs on an optional dataset that is absent are logged."""
    names = {run.name for run in runs}
    to_do = []
    for run in runs:
        with _noted(run, failures):
            try:
                check_run(run, names, repeated)
                run.sources  # noqa: B018 - hash them now, just after they were imported
            except NotRun as reason:
                run.log(f"not run: {reason}")
                continue
            failures.check_needed(run)
            to_do.append(run)
    return to_do


def _print_notes(suite: LoadedSuite, to_do: Sequence[Run[Any]]) -> None:
    """Print what is assumed about the weights of the runs, and the warnings of those that have not finished."""
    if not accelerator().is_main_process:
        return
    for line in dict.fromkeys(assumed for run in to_do if (assumed := _assumed(run))):
        console.print(line)
    warned = warnings(to_do)
    to_come = {run.name for run in to_do if run.name in warned and _is_to_come(run)}
    for paragraph in paragraphs(suite, {name: text for name, text in warned.items() if name in to_come}):
        console.print(paragraph)


def _unused_devices(to_do: Sequence[Run[Any]]) -> str:
    """Return a line about the GPUs that --jobs would use besides the first one; empty if there are none, or with several processes."""
    if (devices := torch.cuda.device_count()) < 2 or accelerator().num_processes > 1:
        return ""
    jobs = min(devices, sum(map(_is_to_come, to_do)))
    used = "all" if jobs == devices else f"{jobs} of them"
    return f"{devices} GPUs are visible, and one is used; --jobs {jobs} would use {used}." if jobs > 1 else ""


def _share_run_folders(workspace: Workspace) -> None:
    """Give all processes the first one's list of run folders: other commands may start and finish runs meanwhile."""
    if accelerator().num_processes > 1:
        listings = [dict(workspace.run_folders)]
        broadcast_object_list(listings)
        workspace.run_folders.clear()
        workspace.run_folders.update(listings[0])


def _in_order(to_do: list[Run[Any]], repeated: Collection[str], failures: Failures, alone: bool) -> None:
    """Do one run after the other; finished runs in ``repeated`` are repeated.

    The error of a run that is ``alone`` is not printed here: it ends the command.
    """
    for at_last in (False, True):
        held: list[Run[Any]] = []
        for run in to_do:
            if run.needs is not None and run.needs.name in {other.name for other in held}:
                held.append(run)
                continue
            with _noted(run, failures):
                try:
                    failures.check_needed(run)
                    run_one(run, run.name in repeated)
                except Held as reason:
                    if at_last or accelerator().num_processes > 1:
                        raise
                    console.print(f"{reason} It is tried again after the other runs.")
                    held.append(run)
            if run.name in failures.reasons and not at_last and not alone:
                failures.tell(run)
        to_do = held


@contextmanager
def _noted(run: Run[Any], failures: Failures) -> Iterator[None]:
    """Note why a run failed, and continue with the others; with several processes, raise the error instead."""
    try:
        yield
    except UserError as error:
        if isinstance(error, Halt) or accelerator().num_processes > 1:
            raise
        failures.reasons[run.name] = str(error)


def _assumed(run: Run[Any]) -> str:
    """Return a note that ImageNet's normalisation is assumed for a user's encoder; empty if its normalisation is known."""
    source = run.recipe.source
    if source is None or source.kind != "checkpoint" or run.planned.kind.starts_from != "encoder":
        return ""
    if run.preprocessing.origin != IMAGENETS.origin:
        return ""
    table = f"method.{run.planned.method}"
    return (
        f"{table}: images are normalised with ImageNet's mean and std, because {run.weights} does not say how its images were normalised. "
        f"If it was trained with other values, set mean and std in [{table}]."
    )


def _is_to_come(run: Run[Any]) -> bool:
    """Return whether a run has not finished; True if that is not known before the run it depends on has finished."""
    try:
        return run.status().state is not RunState.FINISHED
    except UserError:
        return True


def run_one(run: Run[Any], again: bool) -> None:
    """Perform a run that has not finished; with ``again``, also one that has.

    Raises:
        Held: if another command is running it.
        UserError: if an error occurs in it.
    """
    main = accelerator().is_main_process
    with lock(run) if main else nullcontext():
        accelerator().wait_for_everyone()
        status = run.status()
        if status.made_as and not again:
            check_found(run)
            status = run.status()
        for paragraph in status.damage:
            run.log(paragraph)
        if main:
            _bring_records(run.needs)
        if status.state is RunState.FINISHED and not again:
            if main:
                run.restore_record()
            as_made = f", as {status.made_as}" if status.made_as else ""
            other = f" {status.counted}" if status.detail else ""
            hint = f"; to repeat it: --again {status.edited}" if status.edited else ""
            run.log(f"finished already{as_made}{other}; {run.result()} ({status.folder}){hint}")
            return
        if status.made_as:
            run.log(f"runs again in its own folder; {status.made_as} stays in {status.folder}")
        elif status.state is RunState.FINISHED:
            aside = run.set_aside() if main else run.folder
            run.log(f"runs again; the old run stays in {aside}")
        elif main:
            _require_not_begun(run)
        if status.state is RunState.STALE:
            run.log(f"{status}; runs again; the old run stays in {status.folder}")
        processors_multiply_bf16()  # all processes must agree on this
        if main:
            run.start()
        accelerator().wait_for_everyone()
        with interruption_explained(partial(kept_of, run)):
            perform(run)
        accelerator().wait_for_everyone()
        run.workspace.run_folders.setdefault(run.folder.name, []).append(run.folder)  # for those of the same identity
        run.log(run.result())


def _bring_records(run: Run[Any] | None) -> None:
    """Copy the records of a finished run and of the runs it depends on to the results, if they are not there: tables need them.

    A record that cannot be copied is logged; only a full disk stops the command.
    """
    if run is None:
        return
    _bring_records(run.needs)
    with suppress(UserError):
        if run.record(run.workspace.results):
            return
    try:
        with suppress(Held), lock(run):
            run.restore_record()
    except Halt:
        raise
    except (PermissionError, UserError) as error:
        run.log(str(error))


def perform(run: Run[Any]) -> None:
    """Perform a run, to its record."""
    keep_freed_memory()
    torch.set_num_threads(run.recipe.threads or THREADS)
    begun_in, own = run.begun_in, precision_at_start(run)
    if begun_in not in ("", own):
        run.log(f"continues in {begun_in}, the precision it began with; a new run on this machine would use {own}.")
    with computing_in(begun_in):
        run.planned.kind.module.perform(run)


def _require_not_begun(run: Run[Any]) -> None:
    """Raise Held if another command is running a run of the same identity, from another suite or under another name."""
    for folder in begun_elsewhere(run):
        if holder := held_in(folder.parent):
            raise Held(f"{run.name} is being run already, in {folder}, by {holder}. Wait for it, or stop it first.")


def kept_of(run: Run[Any]) -> str:
    """Return a sentence about what is kept of an interrupted run."""
    if progress := progress_of(run):
        return f"{run.name} is {RunState.RESUMABLE} {progress}; finished runs are kept."
    return f"{run.name} has saved nothing yet; finished runs are kept."
