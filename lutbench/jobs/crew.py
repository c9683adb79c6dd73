"""The worker processes of a command: start them, give them runs, receive their messages, end them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.context import ForkContext, ForkProcess, SpawnContext, SpawnProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from lutbench.jobs.worker import Assignment, Gone, Message, Ready, work
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import Run
from lutbench.workspace import Workspace

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PATIENCE = 10.0
"""Seconds that a worker without a run has to end."""


@dataclass(eq=False)
class Worker:
    """A process that performs runs, and its current run."""

    process: ForkProcess | SpawnProcess
    connection: "Connection[Any, Any]"
    device: str | None
    """The only GPU that it sees, named as in ``CUDA_VISIBLE_DEVICES``; None if there is none."""
    run: Run[Any] | None = None
    ready: bool = False
    """Whether it handles signals already; before that, a signal would end it with a traceback."""

    def give(self, run: Run[Any], again: bool) -> None:
        """Have it perform a run, which is repeated ``again`` if it has finished."""
        self.run = run
        with suppress(OSError):  # it has ended, which is told soon
            self.connection.send(Assignment(run.name, again))


class Crew:
    """``count`` workers, until the end of a ``with`` block.

    Without a GPU they are forked, in a hundredth of a second, with everything that was imported and opened for the checks; that works
    as long as torch has not computed on several threads in this process. With GPUs they are spawned, because CUDA does not survive a
    fork: each sees one GPU, and if there are more workers than GPUs, several share one. Nothing divides the GPU's memory among them: a
    run that does not get enough fails, and the others continue.
    """

    def __init__(self, suite: LoadedSuite, workspace: Workspace, count: int) -> None:
        self._suite, self._workspace = suite, workspace
        devices = visible_devices()
        self._context: ForkContext | SpawnContext = get_context("spawn") if is_spawned(devices) else get_context("fork")
        self.workers = [self._start(devices[number % len(devices)] if devices else None) for number in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the idle workers, and kill all others."""
        for worker in self.workers:
            if kind is not None or worker.run is not None or not worker.ready:
                worker.process.kill()
            else:
                with suppress(OSError):
                    worker.connection.send(None)
        for worker in self.workers:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()

    @property
    def idle(self) -> list[Worker]:
        """The workers that have no run."""
        return [worker for worker in self.workers if worker.run is None]

    @property
    def running(self) -> list[Run[Any]]:
        """The runs that they are at."""
        return [worker.run for worker in self.workers if worker.run is not None]

    def messages(self, seconds: float) -> Iterator[tuple[Worker, Message]]:
        """Yield messages of workers as they arrive, or nothing after ``seconds``; the last message of a worker that has ended is Gone."""
        waited = connection.wait(
            [end for worker in self.workers for end in (worker.connection, worker.process.sentinel)], seconds
        )
        for worker in list(self.workers):
            gone = worker.process.sentinel in waited
            while worker.connection.poll():
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    break
                worker.ready = worker.ready or isinstance(message, Ready)
                yield worker, message
            if gone:
                worker.process.join()
                worker.connection.close()
                self.workers.remove(worker)
                yield worker, Gone(worker.process.exitcode or 0)

    def replace(self, gone: Worker) -> None:
        """Start another worker in the place of one that has ended."""
        self.workers.append(self._start(gone.device))

    def signal(self, number: int) -> None:
        """Forward a signal to every worker; those that do not handle signals yet are killed."""
        for worker in self.workers:
            if not worker.ready:
                worker.process.kill()
            elif worker.process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, number)

    def kill(self) -> None:
        """End every worker at once."""
        for worker in self.workers:
            worker.process.kill()

    def _start(self, device: str | None) -> Worker:
        ours, theirs = self._context.Pipe()
        workspace = self._workspace if isinstance(self._context, ForkContext) else self._workspace.unopened()
        process = self._context.Process(target=work, args=(theirs, self._suite, workspace, os.getpid()))
        with _seeing(device):
            process.start()
        theirs.close()
        return Worker(process, ours, device)


def is_spawned(devices: list[str]) -> bool:
    """Return whether workers are spawned instead of forked: with ``devices``, and on all systems except Linux."""
    return bool(devices) or sys.platform != "linux"


@contextmanager
def _seeing(device: str | None) -> Iterator[None]:
    """Let processes that are spawned in the block see only this GPU, from their first moment on: whatever they import may ask CUDA."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        yield
    finally:
        if device is not None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def visible_devices() -> list[str]:
    """Return the GPUs that this process may use, named as in ``CUDA_VISIBLE_DEVICES``, without initialising CUDA."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]
