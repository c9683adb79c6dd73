"""Locks: only one command at a time performs a run, and others can see which one."""

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
    """The cluster job it is a part of."""


class Held(UserError):
    """Another command is performing the run."""


@contextmanager
def lock(run: "Run[Any]") -> Iterator[None]:
    """Lock a run against all other commands, and first remove half-written files that killed ones left.

    The system releases the lock of a killed process. A job waits up to ``LUTBENCH_LOCK_PATIENCE`` seconds for the lock: a file server
    releases the locks of a lost node with a delay. Where nodes do not see each other's locks, a job on another node that the scheduler
    lists as running still holds the run.

    Raises:
        Held: with the process that is performing the run.
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
        raise Held(f"{run.name} is being run already, by {_holder(run.home)}. Wait for it, or stop it.") from None
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
    """Return whether the holder is a job that is running on another machine."""
    if holder is None or holder.job in ("", this_job()) or holder.machine == platform.node():
        return False
    return is_active(holder.job)


def held_by(run: "Run[Any]") -> str:
    """Return which process is performing a run, ``process 123 on a-machine since ...``; empty if none is."""
    return held_in(run.home)


def held_in(home: Path) -> str:
    """Return which process is performing a run in the folder of a run name; empty if none is."""
    if not (home / ".holder.json").is_file():
        return ""
    try:
        with FileLock(home / ".lock", timeout=0):
            return ""  # whoever wrote it was killed
    except Timeout:
        return _holder(home)
    except PermissionError:  # another user's folder
        return ""


def _holder(home: Path) -> str:
    who = read_model(home / ".holder.json", Holder) or Holder()
    job = f", job {who.job}" if who.job else ""
    return f"process {who.process} on {who.machine} since {who.since}{job}"
