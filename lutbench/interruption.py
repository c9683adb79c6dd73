"""Signals that ask a command to end: Ctrl-C, a scheduler's SIGTERM, SIGUSR1 or SIGUSR2, the SIGHUP of a terminal that closes."""

import logging
import os
import signal
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

LOCKING = {threading.Condition.__enter__.__code__, threading.Condition.__exit__.__code__}
"""Code that takes and releases the lock of a queue, an event or a semaphore: an exception inside would leave it locked for ever."""

LOCKING |= {hook.__code__ for name in ("_acquireLock", "_releaseLock") if (hook := getattr(logging, name, None))}
"""Of Python up to 3.12, which calls these around every fork, and there prints an exception instead of raising it."""

INSIST = 5.0
"""Seconds after which an interruption that was lost on its way is raised again: longer than what a generator that is closed by it waits
for, which cannot be told from a loss."""

_heard: set[int] = set()
"""The signals received so far while any block is listening: signals go to the process, not to a part of it."""

_raised: list["Interrupted"] = []
"""The last interruption that was raised while any block is listening, if there was one."""

_hearing: list[None] = []
"""One entry for each nested block that is listening."""


class Interrupted(BaseException):
    """A signal asks the command to end; ``kept`` is a sentence about what is kept.

    It is not an Exception, so that code that handles errors does not catch it.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def __str__(self) -> str:
        kept = self.kept or "Finished runs are kept."
        return f"Stopped by {signal.Signals(self.number).name}. {kept} Repeat the same command to continue."

    @property
    def exit_status(self) -> int:
        """The exit status that shells expect after a signal: 130 after Ctrl-C."""
        return 128 + self.number


def interrupt(number: int, again: bool) -> None:
    """Raise Interrupted: the handler where nothing has to be saved first."""
    raise Interrupted(number)


def _insist(stop: Interrupted) -> None:
    """Raise an interruption again if it was lost: a library that tries something may catch all exceptions, this one too.

    It is lost if the main thread is not handling it, in an ``except`` or ``finally``, though the block that listens goes on.
    """
    while True:
        time.sleep(INSIST)
        if stop not in _raised:  # nobody listens any more, or another one came
            return
        found: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
        handled = found[1] if isinstance(found, tuple) else found  # a tuple up to Python 3.11
        while handled is not None and handled is not stop:
            handled = handled.__context__
        if handled is None:
            _heard.clear()
            os.kill(os.getpid(), stop.number)
            return


def _send(number: int) -> None:
    """Send a signal to this process again, a moment later."""
    time.sleep(0.01)
    os.kill(os.getpid(), number)


@contextmanager
def hearing(handler: Callable[[int, bool], None]) -> Iterator[None]:
    """Call ``handler(number, again)`` at the first signal and, with ``again``, at every further Ctrl-C.

    All other signals after the first are ignored: launchers such as nox send SIGTERM soon after Ctrl-C, and a scheduler may send it
    both to the process and to its launcher, which passes it on. Signals that were blocked until now are unblocked. Signals that are
    ignored, as under nohup, stay ignored. Signals that the main thread blocks inside the block wait until it unblocks them, though
    the system may hand them to another thread. Processes forked inside the block react to SIGTERM only, which ends them.
    """
    owner = os.getpid()
    before = {number: found for number in SIGNALS if (found := signal.getsignal(number)) != signal.SIG_IGN}

    def hear(number: int, frame: FrameType | None) -> None:
        """Call the handler, unless this is a forked process or another signal came before."""
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        held_back = number in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # by this thread; another one received it
        if held_back or (frame is not None and frame.f_code in LOCKING):
            start_new_thread(_send, (number,))
            return
        first, again = not _heard, number in _heard and number == signal.SIGINT
        _heard.add(number)
        if first or again:
            try:
                handler(number, again)
            except Interrupted as stop:
                _raised[:] = [stop]
                start_new_thread(_insist, (stop,))
                raise

    _hearing.append(None)
    for number in before:
        signal.signal(number, hear)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
        _hearing.pop()
        if not _hearing:  # later work of the process, as in a notebook, is stopped by its first signal again
            _heard.clear()
            _raised.clear()


@contextmanager
def interruption_explained(kept: Callable[[], str]) -> Iterator[None]:
    """Add the sentence that ``kept()`` returns to an interruption of the block, unless it has one already."""
    try:
        yield
    except Interrupted as stop:
        if stop.kept:
            raise
        raise Interrupted(stop.number, kept()) from stop
