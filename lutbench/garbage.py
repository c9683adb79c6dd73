"""Python's search for garbage, kept away from what libraries leave behind: half a million objects, none of which is garbage.

They are searched several times while torch and timm are imported, and twice when the process ends. This took up to three seconds of
every command that computes.
"""

import atexit
import gc
import os
import sys
import threading
from typing import NoReturn

USUAL = gc.get_threshold()

RARE = (100_000, 50, 50)
"""Thresholds while libraries are imported (our choice): as fast as never, and still a limit to what commands without runs leave."""


def search_rarely() -> None:
    """Search for garbage rarely from here on."""
    gc.set_threshold(*RARE)


def search_as_usual() -> None:
    """Search as often as Python does, but never again among what exists now; without :func:`search_rarely` before, nothing changes.

    For the beginning of runs, whose garbage may hold large tensors. Processes that are forked from this one share the memory of what
    exists now, because no search writes to it.
    """
    if gc.get_threshold() == RARE:
        gc.freeze()
        gc.set_threshold(*USUAL)


def end_process(status: int) -> NoReturn:
    """End this process as multiprocessing ends its own: threads and exit functions finish, output is written, the memory is left.

    The exit status is 120 if output cannot be written, as Python's is.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = 120
    os._exit(status)
