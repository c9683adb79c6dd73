"""Garbage collection, kept away from what libraries leave behind: half a million objects, none of which is garbage.

Python's collector goes through them several times while torch and timm are imported, and twice when the process ends: up to three
seconds of every command that computes (two cores of an Intel Xeon, family 6, model 167).
"""

import atexit
import gc
import os
import sys
import threading
from typing import Any, NoReturn

USUAL = gc.get_threshold()

RARE = (100_000, 50, 50)
"""Thresholds while libraries are imported (our choice): as fast as no collection, and still a limit to the garbage of commands
without runs."""


def collect_rarely() -> None:
    """Collect garbage rarely from here on."""
    gc.set_threshold(*RARE)


def collect_as_usual() -> None:
    """Collect as often as Python does, but never go through what exists now again; without :func:`collect_rarely` before, nothing changes.

    For the beginning of runs, whose garbage may hold large tensors. Forked processes, too, do not go through what exists now, so
    collections there copy none of its memory.
    """
    if gc.get_threshold()[0] == RARE[0]:  # the last of them is always 0 from Python 3.14 on
        gc.freeze()
        gc.set_threshold(*USUAL)


def end_process(status: int) -> NoReturn:
    """End this process as multiprocessing ends its own: after its threads and exit functions, without freeing what it holds.

    Standard output and standard error are written; the exit status is 120, as Python's, if they cannot be. Other files have to be
    closed before. Under a profiler, a debugger or a tracer, which write when Python ends, it ends as usual.
    """
    if _is_watched():
        sys.exit(status)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:  # from the start, as by >&-
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            status = 120
    os._exit(status)


def _is_watched() -> bool:
    """Return whether something looks at what this process does."""
    monitoring: Any = getattr(sys, "monitoring", None)  # since Python 3.12
    tools = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
    return any([sys.getprofile(), sys.gettrace(), *tools])
