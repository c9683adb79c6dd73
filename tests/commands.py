"""The command line in processes of their own, for tests that send it signals: real ones, but for their imports.

They are forked from a process that has imported what runs need, once and from clean beginnings, which saves seconds each time.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lutbench.kinds import KINDS

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    *("lutbench.cli", "lutbench.stages", "lutbench.jobs.crew", "downstream.segmentation.segment"),
    *(kind.module_name for kind in KINDS.values()),
])  # fmt: skip


class Command:
    """``lutbench`` with these arguments, in a session of its own and with some signals ignored: what subprocess.Popen has, of this."""

    def __init__(self, *arguments: str, ignored: Sequence[int] = ()) -> None:
        self._folder = TemporaryDirectory()
        self._files = [str(Path(self._folder.name) / name) for name in ("out", "err")]
        self._process = SERVER.Process(target=_enter, args=(arguments, dict(os.environ), ignored, self._files))
        self._process.start()
        atexit.register(self._process.kill)  # of a test that failed before it ended; multiprocessing would wait for it

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of a signal that ended it, -N; None while it goes on."""
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 600) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, f"it goes on after {timeout} seconds: {self._printed()}"
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for its end; return what it printed to stdout and to stderr."""
        self.wait(timeout)
        return self._printed()

    def _printed(self) -> tuple[str, str]:
        out, err = (Path(file).read_text(errors="backslashreplace") for file in self._files)
        return out, err


def _enter(
    arguments: Sequence[str], variables: Mapping[str, str], ignored: Sequence[int], files: Sequence[str]
) -> None:
    """Be a new process to all appearance, and call the command line."""
    os.setsid()
    for descriptor, name in enumerate(files, 1):
        with Path(name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whatever these tests were started by
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    multiprocessing.set_start_method(None, force=True)  # not the one by which this process was started
    sys.argv = ["lutbench", *arguments]
    from lutbench.cli import main

    status: Any = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    sys.exit(
        status
    )  # where no frame of main is left: as an interpreter that ends, which lets loaders go before it waits for processes


def start(folder: Path, home: str, *options: str, changes: Sequence[str] = (), ignored: Sequence[int] = ()) -> Command:
    """``lutbench run`` of the suite ``toy.toml`` in ``folder``, with the data there and all that it writes below ``folder / home``."""
    places = (
        "--data-root",
        str(folder),
        "--runs",
        str(folder / home / "runs"),
        "--results",
        str(folder / home / "results"),
    )
    settings = [part for change in changes for part in ("--set", change)]
    return Command("run", str(folder / "toy.toml"), *places, *options, *settings, ignored=ignored)


def wait_for(condition: Callable[[], Any], command: Command) -> None:
    """Wait until something is so, which it is before the command ends."""
    deadline = time.monotonic() + 600
    while not condition():
        assert command.returncode is None, f"ended before it could be stopped: {command.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def paragraph_of(command: Command) -> str:
    """What it tells the user at the end, which is one paragraph and no traceback."""
    err = command.communicate()[1]
    lines = [line for line in err.splitlines() if line and ": saves after this step" not in line]
    assert len(lines) == 1, f"status {command.returncode}: {err}"
    assert "Repeat the same command to continue." in lines[0]
    return lines[0]
