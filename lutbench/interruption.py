"""Signals that ask a command to end: Ctrl-C, a scheduler's SIGTERM, SIGUSR1 or SIGUSR2, the SIGHUP of a terminal that closes."""

import os
import signal
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

LOCKING = {threading.Condition.__enter__.__code__, threading.Condition.__exit__.__code__}
"""What takes and gives back the lock of a queue, an event or a semaphore: an exception inside leaves that locked for ever, and what waits
for it waiting."""

_heard: set[int] = set()
"""Those that came so far, as long as any part of the process hears: signals are the process's, not those of a part of it."""

_hearing: list[None] = []
"""As many as there are blocks, one in another, that hear."""


class Interrupted(BaseException):
    """A signal asks the command to end; ``kept`` says what is kept, in a sentence.

    No Exception, so that nothing that handles errors takes it for one.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def __str__(self) -> str:
        kept = self.kept or "What was finished before is kept."
        return f"Stopped by {signal.Signals(self.number).name}. {kept} Give the same command again to go on."

    @property
    def exit_status(self) -> int:
        """What shells expect of a command that a signal ended: 130 after Ctrl-C."""
        return 128 + self.number


def interrupt(number: int, again: bool) -> None:
    """Raises Interrupted: what to do about a signal where nothing has to be saved first."""
    raise Interrupted(number)


def _send(number: int) -> None:
    """Send a signal to this process once more, a moment later."""
    time.sleep(0.01)
    os.kill(os.getpid(), number)


@contextmanager
def hearing(handler: Callable[[int, bool], None]) -> Iterator[None]:
    """Have ``handler(number, again)`` called at the first signal and, with ``again``, whenever Ctrl-C comes once more.

    Of another kind, and of every kind but Ctrl-C, those that follow are passed over: launchers such as nox send SIGTERM soon after
    Ctrl-C, a scheduler sends it to a launcher too, which passes it on, and nobody asked twice. What was held back from a process
    until it hears is heard from here on. Signals that are ignored, as under nohup, stay so. In processes that are forked meanwhile, which follow this one, SIGTERM
    alone is heard, and ends them.
    """
    owner = os.getpid()
    before = {number: found for number in SIGNALS if (found := signal.getsignal(number)) != signal.SIG_IGN}

    def hear(number: int, frame: FrameType | None) -> None:
        """Pass a signal on, unless this is another process or it follows the first of another kind."""
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if frame is not None and frame.f_code in LOCKING:
            start_new_thread(_send, (number,))
            return
        first, again = not _heard, number in _heard and number == signal.SIGINT
        _heard.add(number)
        if first or again:
            handler(number, again)

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
        if not _hearing:  # what the process does next, as in a notebook, is stopped by a first signal again
            _heard.clear()


@contextmanager
def interruption_explained(kept: Callable[[], str]) -> Iterator[None]:
    """Have an interruption of the block say what ``kept()`` returns, unless it says already what is kept."""
    try:
        yield
    except Interrupted as stop:
        if stop.kept:
            raise
        raise Interrupted(stop.number, kept()) from stop
