"""What a command does with the runs of a suite: check them, and run them in order."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from lutbench.errors import Halt, NotRun, UserError
from lutbench.interruption import interruption_explained
from lutbench.locks import Held, held_in, lock
from lutbench.models.preprocessing import IMAGENETS
from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite
from lutbench.refusals import check_run, not_done, paragraphs, warnings
from lutbench.run import Run, open_run
from lutbench.run_lookup import begun_elsewhere, check_found
from lutbench.run_status import RunState, progress_of
from lutbench.train.precision import precision_at_start, processors_multiply_bf16
from lutbench.train.processes import accelerator, computing_in
from lutbench.workspace import Workspace

THREADS = torch.get_num_threads()
"""The number that torch chose, from the cores and ``OMP_NUM_THREADS``."""


def run_suite(
    suite: LoadedSuite,
    stages: Sequence[str],
    only: Sequence[str],
    workspace: Workspace,
    again: Sequence[str] = (),
    jobs: int = 1,
) -> None:
    """Run what was chosen, each run after the one it needs; a run that cannot be done keeps no other from being done.

    Of those that have finished, the ones that ``again`` names are repeated, and what there is of them is set aside.

    What would stop a run is looked for before the first one begins. Runs on an optional dataset that is absent are left
    out. A run that another command is at work on is passed over, and looked at again when the others are done. Several
    processes could not agree on what to leave out: there the first error ends the command.

    With several ``jobs`` so many runs are done side by side, see :mod:`lutbench.jobs.side_by_side`.

    Raises:
        UserError: at the end, saying which runs were not done and why: data is missing or unfit, an encoder
            cannot be built, a batch does not divide over the processes, a run from outside the choice is
            needed first, or something went wrong in it. At once, if none can be done or a folder cannot be made.
        Halt: at once, if nothing can be saved or the user asked to stop.
    """
    if jobs > 1 and (processes := accelerator().num_processes) > 1:
        raise UserError(
            f"--jobs {jobs}: torchrun started {processes} processes, which do one run at a time together. Leave --jobs out, or start "
            "lutbench without torchrun, for runs of one process each side by side."
        )
    if jobs > 1:
        torch.set_num_threads(1)  # of the checks: a process whose torch computed on several threads cannot be forked
    runs = [open_run(suite, planned, workspace) for planned in suite.chosen(stages, only)]
    if not runs and accelerator().is_main_process:
        console.print(f"Suite {suite.name} has no runs of stage {' or '.join(stages)}.")
    names = {run.name for run in runs}
    repeated = {planned.name for planned in suite.chosen(stages, again, "--again")} if again else set()
    failed: dict[str, str] = {}
    to_do: list[Run[Any]] = []
    for run in runs:
        with _noted(run, failed):
            try:
                check_run(run, names, repeated)
                run.sources  # noqa: B018 - as they are now that they have been imported
            except NotRun as reason:
                run.log(f"not run: {reason}")
                continue
            require_not_failed(run, failed)
            to_do.append(run)
    if failed and not to_do:
        raise UserError(not_done(suite, failed, len(runs)))
    if failed:
        console.print(not_done(suite, failed, len(runs)))
    told = set(failed)
    for line in dict.fromkeys(assumed for run in to_do if (assumed := _assumed(run))):
        console.print(line)
    warned = warnings(to_do) if accelerator().is_main_process else {}
    to_come = {run.name for run in to_do if run.name in warned and _is_to_come(run)}
    for paragraph in paragraphs(suite, {name: text for name, text in warned.items() if name in to_come}):
        console.print(paragraph)
    workspace.make()
    if accelerator().num_processes > 1:
        # other commands may begin and finish runs meanwhile: one listing for all processes
        listings = [dict(workspace.run_folders)]
        broadcast_object_list(listings)
        workspace.run_folders.clear()
        workspace.run_folders.update(listings[0])
    if jobs > 1 and len(to_do) > 1:
        from lutbench.jobs.side_by_side import side_by_side  # here, because it needs this module

        side_by_side(suite, to_do, repeated, failed, told, jobs)
    else:
        _in_order(suite, to_do, repeated, failed, told, alone=len(runs) == 1)
    if failed:
        raise UserError(not_done(suite, failed, len(runs), told))


def _in_order(
    suite: LoadedSuite,
    to_do: list[Run[Any]],
    repeated: Collection[str],
    failed: dict[str, str],
    told: set[str],
    alone: bool,
) -> None:
    """Do one run after the other; ``failed`` gets the reason of each that cannot be done, and ``told`` the name if it was printed.

    ``repeated`` are those that are repeated if they have finished; of a run that is ``alone`` the command says why at its end.
    """
    for at_last in (False, True):
        held: list[Run[Any]] = []
        for run in to_do:
            if run.needs is not None and run.needs.name in {other.name for other in held}:
                held.append(run)
                continue
            with _noted(run, failed):
                try:
                    run_one(run, failed, run.name in repeated)
                except Held as reason:
                    if at_last or accelerator().num_processes > 1:
                        raise
                    console.print(f"{reason} It is looked at again when the others are done.")
                    held.append(run)
            if run.name in failed and not at_last and not alone:
                tell_failure(suite, run, failed, told)
        to_do = held


def tell_failure(suite: LoadedSuite, run: Run[Any], failed: Mapping[str, str], told: set[str]) -> None:
    """Print why a run failed, unless it follows from another that failed, of which that is told."""
    if run.needs is None or run.needs.name not in failed:
        console.print(*paragraphs(suite, {run.name: failed[run.name]}))
        told.add(run.name)


@contextmanager
def _noted(run: Run[Any], failed: dict[str, str]) -> Iterator[None]:
    """Note why a run cannot be done, and go on with the others; of several processes none goes on alone."""
    try:
        yield
    except UserError as error:
        if isinstance(error, Halt) or accelerator().num_processes > 1:
            raise
        failed[run.name] = str(error)


def _assumed(run: Run[Any]) -> str:
    """Return what is taken of images because nothing says how a user's encoder has to have them; empty if something does."""
    source = run.recipe.source
    if source is None or source.kind != "checkpoint" or run.planned.kind.starts_from != "encoder":
        return ""
    if run.preprocessing.origin != IMAGENETS.origin or not accelerator().is_main_process:
        return ""
    table = f"method.{run.planned.method}"
    return (
        f"{table}: images are normalised as ImageNet's: nothing beside {run.weights} says otherwise; if it was trained on others, set mean "
        f"and std in [{table}]."
    )


def _is_to_come(run: Run[Any]) -> bool:
    """Return whether a run has not finished, as far as can be told before the run that it needs has."""
    try:
        return run.status().state is not RunState.FINISHED
    except UserError:
        return True


def require_not_failed(run: Run[Any], failed: Mapping[str, str]) -> None:
    """Raise UserError if the run that a run needs failed."""
    if run.needs is not None and run.needs.name in failed:
        raise UserError(f"{run.name} needs {run.needs.name}, which cannot be done.")


def run_one(run: Run[Any], failed: Mapping[str, str], again: bool) -> None:
    """Perform a run that has not finished, or one that has ``again``.

    Raises:
        Held: if another command is at work on it.
        UserError: if the run that it needs failed, or something goes wrong in it.
    """
    main = accelerator().is_main_process
    require_not_failed(run, failed)
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
            hint = f"; to repeat that: --again {status.edited}" if status.edited else ""
            run.log(f"finished already{as_made}{other}; {run.result()} ({status.folder}){hint}")
            return
        if status.made_as:
            run.log(f"runs anew in a folder of its own, and {status.made_as} stays in {status.folder}")
        elif status.state is RunState.FINISHED:
            aside = run.set_aside() if main else run.folder
            run.log(f"runs anew, and what there was stays in {aside}")
        elif main:
            _require_not_begun(run)
        if status.state is RunState.STALE:
            run.log(f"{status}; runs anew, and the old run stays in {status.folder}")
        processors_multiply_bf16()  # which all processes agree on
        if main:
            run.start()
        accelerator().wait_for_everyone()
        with interruption_explained(partial(kept_of, run)):
            perform(run)
        accelerator().wait_for_everyone()
        run.workspace.run_folders.setdefault(run.folder.name, []).append(run.folder)  # for those of the same identity
        run.log(run.result())


def _bring_records(run: Run[Any] | None) -> None:
    """Put the records of a finished run and of those that it starts from into the results, if they are not there: tables ask.

    What cannot be brought is told, and keeps nothing from being done but on a full disk.
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
    torch.set_num_threads(run.recipe.threads or THREADS)
    begun_in, own = run.begun_in, precision_at_start(run)
    if begun_in not in ("", own):
        run.log(f"computes in {begun_in}, as it began, and not in {own}, which is what this machine is better at.")
    with computing_in(begun_in):
        run.planned.kind.module.perform(run)


def _require_not_begun(run: Run[Any]) -> None:
    """Raises Held if another command is at work on a run of the same identity, be it of another suite or by another name."""
    for folder in begun_elsewhere(run):
        if holder := held_in(folder.parent):
            raise Held(f"{run.name} is being run already, in {folder}, by {holder}. Wait for it, or stop it first.")


def kept_of(run: Run[Any]) -> str:
    """Return what is kept of a run that was interrupted, for a message."""
    if progress := progress_of(run):
        return f"{run.name} is {RunState.RESUMABLE} {progress}, and the runs before it are kept."
    return f"Of {run.name} nothing is kept yet; the runs before it are."
