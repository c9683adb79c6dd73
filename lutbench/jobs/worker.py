"""A process that performs runs, one after the other, for the command that started it.

It receives the names of runs over a pipe and performs each as the command without ``--jobs`` would, :func:`lutbench.stages.run_one`. Its
output and progress go back over the same pipe.

It has its own process group, so that Ctrl-C on a terminal reaches it only through the command, and once; but it stays in the command's
session, among which Linux divides CPU time, so that all jobs of a command count as one. If the command is killed, it ends.
"""

import io
import os
import signal
import sys
import time
import traceback
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from lutbench.errors import Halt, UserError
from lutbench.interruption import Interrupted, hearing, interrupt
from lutbench.locks import Held
from lutbench.progress import console, report_to
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import open_run
from lutbench.stages import run_one
from lutbench.system_errors import message
from lutbench.workspace import Workspace

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WATCH_EVERY = 0.5
"""Seconds between checks that the command is still alive."""

STEPS_EVERY = 0.2
"""Least seconds between two messages on how far a run has come."""

Outcome = Literal["done", "held", "failed", "halt"]


class Assignment(NamedTuple):
    """A run to perform."""

    name: str
    again: bool
    """Whether it is repeated if it has finished."""


class Ready(NamedTuple):
    """The worker handles signals now, and waits for its first run."""


class Line(NamedTuple):
    """A line to print."""

    text: str
    error: bool
    """Whether it is for standard error."""


class Step(NamedTuple):
    """Progress of the current step of a run; without a title, there is none."""

    title: str
    done: int
    total: int
    text: str


class Ended(NamedTuple):
    """A run has ended: done, being performed by another command, failed, or nothing more can be saved; with the reason."""

    outcome: Outcome
    reason: str = ""


class Stopped(NamedTuple):
    """A signal ended the worker; ``kept`` is a sentence about what is kept of its run, empty if it had none."""

    kept: str


class Gone(NamedTuple):
    """The worker's process has ended; this message comes from the process that waits for it."""

    status: int
    """Its exit status; the negative number of the signal that killed it."""


Message = Ready | Line | Step | Ended | Stopped | Gone


def work(connection: "Connection[Any, Any]", suite: LoadedSuite, workspace: Workspace, parent: int) -> None:
    """Perform the runs received over ``connection``, until None or a signal comes; the main function of a worker process.

    The worker ends with the process ``parent``.
    """
    os.setpgrp()
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    sender = _Sender(connection)
    console.file = sys.stdout = _Lines(sender, error=False)
    sys.stderr = _Lines(sender, error=True)
    report_to(_Steps(sender))
    with hearing(interrupt):
        try:
            sender.put(Ready())
            while (given := connection.recv()) is not None:
                sender.put(_performed(suite, workspace, given))
                torch.cuda.empty_cache()  # for the other workers on this GPU
        except Interrupted as stop:
            sender.put(Stopped(stop.kept))
        except EOFError:  # the command has ended
            pass
    sender.close()


def _performed(suite: LoadedSuite, workspace: Workspace, given: Assignment) -> Ended:
    """Perform one run, unless it has finished; raises Interrupted if a signal came."""
    workspace.list_again()  # others finished runs meanwhile
    try:
        run_one(open_run(suite, suite.run(given.name), workspace), given.again)
    except Held as reason:
        return Ended("held", str(reason))
    except Halt as reason:
        return Ended("halt", str(reason))
    except UserError as reason:
        return Ended("failed", str(reason))
    except torch.OutOfMemoryError as error:
        return Ended(
            "failed",
            f"{given.name}: the memory of its GPU is full. Fewer --jobs need less. What was saved is kept. ({error})",
        )
    except Exception as error:
        if text := message(error):
            return Ended("failed", f"{given.name}: {text}")
        traceback.print_exc()
        what = f"{type(error).__name__}: {str(error).strip()}".rstrip(" .:")
        return Ended("failed", f"{given.name} failed: {what}. The traceback is printed above.")
    return Ended("done")


def _end_with(parent: int) -> None:
    """End this process at once when ``parent`` has ended."""
    while os.getppid() == parent:
        time.sleep(WATCH_EVERY)
    os.kill(os.getpid(), signal.SIGKILL)


class _Sender:
    """Sends messages from a thread: signals are heard between any two lines of the main thread, and would break one in its middle."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._messages: SimpleQueue[Message | None] = SimpleQueue()
        self._thread = Thread(target=self._send, daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Send a message after those before it."""
        self._messages.put(message)

    def close(self) -> None:
        """Wait until all is sent."""
        self._messages.put(None)
        self._thread.join()

    def _send(self) -> None:
        try:
            while (message := self._messages.get()) is not None:
                self._connection.send(message)
        except OSError:  # the command has ended
            return


class _Lines(io.StringIO):
    """Replaces standard output or standard error: every complete line becomes a message."""

    def __init__(self, sender: _Sender, error: bool) -> None:
        super().__init__()
        self._sender, self._error, self._owner, self._rest = sender, error, os.getpid(), ""

    def write(self, text: str) -> int:
        """Send the lines that are complete; in a loader process, which has no sender thread, write them directly."""
        if os.getpid() != self._owner:
            os.write(2 if self._error else 1, text.encode(errors="backslashreplace"))
            return len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._sender.put(Line(line, self._error))
        return len(text)


class _Steps:
    """Reports how far a run has come, now and then."""

    def __init__(self, sender: _Sender) -> None:
        self._sender, self._title, self._last = sender, "", 0.0

    def __call__(self, title: str, done: int, total: int, text: str) -> None:
        """Send a step: the first and the last of its title, and between them at most one every :data:`STEPS_EVERY` seconds."""
        now = time.monotonic()
        if title != self._title or done >= total or now - self._last >= STEPS_EVERY:
            self._title, self._last = title, now
            self._sender.put(Step(title, done, total, text))
