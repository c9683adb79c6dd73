"""Runs in parallel: a run starts as soon as the run it depends on has finished and a worker is free.

A worker does the same as the command without ``--jobs``. Several commands can share the work, also on several machines over one file
system: a run that another command is performing is skipped, waited for at the end, and taken over if that command is killed.
"""

import signal
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from lutbench.errors import Halt, UserError
from lutbench.interruption import Interrupted, hearing
from lutbench.jobs.crew import Crew, Worker, visible_devices
from lutbench.jobs.order import Queue, known_seconds, longest_first
from lutbench.jobs.view import View
from lutbench.jobs.worker import Ended, Gone, Line, Message, Step, Stopped
from lutbench.progress import console
from lutbench.provenance import hardware
from lutbench.recipes.base import MOST_WORKERS
from lutbench.recipes.suite import LoadedSuite
from lutbench.refusals import Failures
from lutbench.run import Run
from lutbench.stages import THREADS, kept_of

LOOK_EVERY = 2.0
"""Seconds between checks of a run that another command is performing."""

AT_ONCE = 10.0
"""Seconds that workers have to end after a second Ctrl-C, before they are killed."""


def side_by_side(to_do: list[Run[Any]], repeated: Collection[str], failures: Failures, jobs: int) -> None:
    """Do the runs ``to_do``, up to ``jobs`` at once; if one fails, all others continue except those that depend on it.

    Finished runs in ``repeated`` are repeated. Afterwards, the ``failures`` are in the order of the suite.

    Raises:
        Halt: if nothing can be saved, after the others have saved and stopped.
        Interrupted: after a signal, when all have saved and stopped.
    """
    suite = failures.suite
    threads, at_once = None if visible_devices() else max(THREADS, jobs), min(jobs, len(to_do))
    queue = Queue(suite, longest_first(to_do, known_seconds(to_do)), threads, THREADS)
    with Crew(with_shared_cores(suite, at_once), to_do[0].workspace, at_once) as crew, View(len(to_do)) as view:
        shift = _Shift(queue, crew, view, repeated, failures)
        with hearing(shift.hear):
            shift.work()
    failures.reasons = {run.name: reason for run in suite.runs if (reason := failures.reasons.get(run.name))}


def with_shared_cores(suite: LoadedSuite, at_once: int) -> LoadedSuite:
    """Return a suite whose runs, ``at_once`` in parallel, have as many loader processes as their share of the cores, unless ``workers`` is set.

    The number of loader processes is not part of an identity.
    """
    cores = hardware(0).cores  # of no GPU, so that CUDA is not begun here
    share = {"workers": min(MOST_WORKERS, max(1, cores // at_once))}
    runs = (
        planned
        if "workers" in planned.recipe.model_fields_set
        else replace(planned, recipe=planned.recipe.model_copy(update=share))
        for planned in suite.runs
    )
    return replace(suite, runs=tuple(runs))


class _Shift:
    """The work of a crew on a queue of runs."""

    def __init__(self, queue: Queue, crew: Crew, view: View, repeated: Collection[str], failures: Failures) -> None:
        self.queue, self.crew, self.view, self.repeated, self.failures = queue, crew, view, repeated, failures
        self._signal = 0
        """The signal that ends the command."""
        self._deadline = float("inf")
        self._halted = ""
        self._kept: list[str] = []

    def hear(self, number: int, again: bool) -> None:
        """Forward a signal to every worker, which saves and stops; ``again``: a second one, at which it stops at once."""
        self._signal = self._signal or number
        if again:
            self._deadline = time.monotonic() + AT_ONCE
        self.crew.signal(number)

    def work(self) -> None:
        """Do all runs that can run."""
        while self.crew.workers if self._stopping else self.queue.waiting or self.crew.running:
            if not self._stopping:
                self._give_out()
            for worker, message in self.crew.messages(LOOK_EVERY / 4):
                self._take_in(worker, message)
            if time.monotonic() > self._deadline:
                self.crew.kill()
        if self._halted:
            raise Halt(self._halted)
        if self._signal:
            raise Interrupted(self._signal, " ".join(dict.fromkeys(self._kept)))

    @property
    def _stopping(self) -> bool:
        return bool(self._signal or self._halted)

    def _give_out(self) -> None:
        """Give every idle worker a run that can start, and drop runs that depend on a failed one."""
        for run in list(self.queue.waiting):
            try:
                self.failures.check_needed(run)
            except UserError as reason:
                self.queue.waiting.remove(run)
                self.failures.reasons[run.name] = str(reason)
        for worker in self.crew.idle:
            begun = self.queue.take(self.crew.running, time.monotonic())
            if begun is None:
                return
            self.view.begin(begun.name)
            worker.give(begun, begun.name in self.repeated)

    def _take_in(self, worker: Worker, message: Message) -> None:
        """Show a message of a worker about its run, or note how the run ended."""
        run = worker.run
        match message:
            case Line():
                self.view.line(message)
            case Step() if run:
                self.view.step(run.name, message)
            case Ended() if run:
                worker.run = None
                self._end(run, message)
            case Stopped():
                self._note_kept(worker, message.kept)
            case Gone():
                self._lose(worker, message.status)

    def _end(self, run: Run[Any], ended: Ended) -> None:
        """Note that a run is done, failed, or is being done by another command."""
        self.view.end(run.name, ended.outcome == "done")
        if ended.outcome == "done":
            run.workspace.list_again()
        elif ended.outcome == "held":
            if run.name not in self.queue.later:
                console.print(
                    f"{ended.reason.partition('. Wait for it')[0]}. This command waits for it after the other runs."
                )
            self.queue.later[run.name] = time.monotonic() + LOOK_EVERY
            self.queue.waiting.append(run)
        elif ended.outcome == "halt":
            self._halted = self._halted or ended.reason
            self.crew.signal(signal.SIGTERM)
        else:
            self.failures.reasons[run.name] = ended.reason
            self.failures.tell(run)

    def _note_kept(self, worker: Worker, kept: str) -> None:
        """Note what is kept of a run that a signal ended."""
        if worker.run is not None:
            self.view.end(worker.run.name, done=False)
            self._kept.append(kept or kept_of(worker.run))
            worker.run = None

    def _lose(self, worker: Worker, status: int) -> None:
        """Note that a worker has ended: on request, or because it was killed, in which case another replaces it."""
        if self._stopping:
            self._note_kept(worker, "")
            return
        if worker.run is not None:
            run = worker.run
            how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
            reason = (
                f"{run.name}: its process {how}, perhaps because there was not enough memory: a smaller number of --jobs needs less. What "
                "was saved is kept."
            )
            self._end(run, Ended("failed", reason))
        if self.queue.waiting:
            with self.view.paused():
                self.crew.replace(worker)
