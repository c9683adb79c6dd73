"""What a command does with the runs of a suite: check them, run them in order, show their status."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from filelock import FileLock, Timeout

from lutbench.errors import NotRun, UserError
from lutbench.files import read_json, write_json
from lutbench.interruption import interruption_explained
from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import Run, RunState, open_run
from lutbench.train.processes import accelerator
from lutbench.workspace import Workspace

THREADS = torch.get_num_threads()
"""The number that torch chose, from the cores and ``OMP_NUM_THREADS``."""


def run_suite(suite: LoadedSuite, stages: Sequence[str], only: Sequence[str], workspace: Workspace) -> None:
    """Run what was chosen, each run after the one it needs. Runs on an optional dataset that is absent are left out.

    Raises:
        UserError: before anything is run, if data is missing or unfit, an encoder or an augmentation cannot be built,
            a batch does not divide over the processes, a folder cannot be made, or a run from outside the choice is
            needed first.
    """
    main = accelerator().is_main_process
    chosen: dict[str, Run[Any]] = {}
    for planned in suite.chosen(stages, only):
        run = open_run(suite, planned, workspace)
        try:
            planned.kind.module.check(run)
        except NotRun as reason:
            run.log(f"not run: {reason}")
            continue
        if run.needs is not None and run.needs.name not in chosen:
            run.require_needed()
        chosen[run.name] = run
    workspace.make()
    for run in chosen.values():
        with lock(run) if main else nullcontext():
            accelerator().wait_for_everyone()
            status = run.status()
            if status.state is RunState.FINISHED:
                if main:
                    run.restore_record()
                run.log(f"finished already; {run.result()} ({run.folder})")
                continue
            if status.state is RunState.STALE:
                run.log(f"{status}; runs anew, and the old run stays in {status.folder}")
            if main:
                run.start()
            accelerator().wait_for_everyone()
            with interruption_explained(partial(_kept, run)):
                perform(run)
            accelerator().wait_for_everyone()
            run.log(run.result())


def perform(run: Run[Any]) -> None:
    """Perform a run, to its record."""
    torch.set_num_threads(run.recipe.threads or THREADS)
    run.planned.kind.module.perform(run)


def _kept(run: Run[Any]) -> str:
    """Return what is kept of a run that was interrupted, for a message."""
    status = run.status()
    if status.state is RunState.RESUMABLE:
        return f"{run.name} is {status}, and the runs before it are kept."
    return f"Of {run.name} nothing is kept yet; the runs before it are."


@contextmanager
def lock(run: Run[Any]) -> Iterator[None]:
    """Keep every other command from a run meanwhile, and begin with removing what killed ones left half-written.

    Raises:
        UserError: naming the process that holds it already.
    """
    run.home.mkdir(parents=True, exist_ok=True)
    file = FileLock(run.home / ".lock")
    holder = run.home / ".holder.json"
    try:
        file.acquire(timeout=0)
    except Timeout:
        who = read_json(holder) if holder.is_file() else {}
        raise UserError(
            f"{run.name} is being run already, by process {who.get('process', 'unknown')} on "
            f"{who.get('machine', 'unknown')} since {who.get('since', 'unknown')}. Wait for it, or stop it first."
        ) from None
    try:
        run.sweep()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"process": os.getpid(), "machine": platform.node(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        file.release()


def show_status(suite: LoadedSuite, workspace: Workspace) -> None:
    """Print every run of the suite with its status, its result and its folder.

    A line each; on a terminal too narrow for that, result and folder below it.
    """
    rows, problems = [], []
    for planned in suite.runs:
        run = open_run(suite, planned, workspace)
        try:
            status = run.status()
            rows.append((run.name, str(status), run.result(), str(status.folder)))
        except NotRun as reason:
            rows.append((run.name, "not run", "", ""))
            problems.append(str(reason))
        except UserError as error:
            rows.append((run.name, "missing", f"waits for {planned.needs}" if planned.needs else "", ""))
            problems += [] if planned.needs else [str(error)]
    console.print(f"Suite {suite.name}")
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    narrow = console.is_terminal and sum(widths) - 2 > console.width
    for row in rows:
        if narrow:
            console.print("\n    ".join(part for part in (f"{row[0]}  {row[1]}", *row[2:]) if part))
        else:
            console.print("".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip())
    for problem in dict.fromkeys(problems):
        console.print(f"\n{problem}")
