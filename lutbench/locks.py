"""Locks: a run is one command's at a time, and who is at work on it can be told."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from lutbench.cluster.slurm import is_active, this_job
from lutbench.errors import UserError
from lutbench.files import read_model, write_json

if TYPE_CHECKING:
    from lutbench.run import Run


class Holder(BaseModel):
    """The process that performs a run."""

    process: int | str = "unknown"
    machine: str = "unknown"
    since: str = "unknown"
    job: str = ""
    """The job of a cluster that it is a part of."""


class Held(UserError):
    """Another command is at work on a run."""


@contextmanager
def lock(run: "Run[Any]") -> Iterator[None]:
    """Keep every other command from a run meanwhile, and begin with removing what killed ones left half-written.

    The system frees the lock of a process that is killed. A job waits a while for one, ``LUTBENCH_LOCK_PATIENCE`` seconds: a server of
    files gives back later what a node held that is gone. Where nodes do not see each other's locks, a job on another node
    that the scheduler has as running is at work on it still.

    Raises:
        Held: naming the process that is at work on it already.
    """
    run.home.mkdir(parents=True, exist_ok=True)
    file = FileLock(run.home / ".lock")
    holder = run.home / ".holder.json"
    try:
        file.acquire(timeout=float(os.environ.get("LUTBENCH_LOCK_PATIENCE", "0")))
        if _goes_on_elsewhere(read_model(holder, Holder)):
            file.release()
            raise Timeout(file.lock_file)
    except Timeout:
        raise Held(f"{run.name} is being run already, by {_holder(run.home)}. Wait for it, or stop it first.") from None
    try:
        run.sweep()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        mine = Holder(process=os.getpid(), machine=platform.node(), since=since, job=this_job())
        write_json(holder, mine.model_dump())
        yield
    finally:
        holder.unlink(missing_ok=True)
        file.release()


def _goes_on_elsewhere(holder: Holder | None) -> bool:
    """Return whether what a holder left is of a job that is running, on another machine."""
    if holder is None or holder.job in ("", this_job()) or holder.machine == platform.node():
        return False
    return is_active(holder.job)


def held_by(run: "Run[Any]") -> str:
    """Return who is at work on a run, ``process 123 on a-machine since ...``; empty if nobody is."""
    return held_in(run.home)


def held_in(home: Path) -> str:
    """Return who is at work on the runs of a name, which have this folder; empty if nobody is."""
    if not (home / ".holder.json").is_file():
        return ""
    try:
        with FileLock(home / ".lock", timeout=0):
            return ""  # whoever wrote it was killed
    except Timeout:
        return _holder(home)
    except PermissionError:  # a folder of others, in which nobody can tell
        return ""


def _holder(home: Path) -> str:
    who = read_model(home / ".holder.json", Holder) or Holder()
    job = f", job {who.job}" if who.job else ""
    return f"process {who.process} on {who.machine} since {who.since}{job}"
