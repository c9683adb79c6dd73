"""Ask SLURM about jobs, through its own commands. Nothing here needs torch."""

import os
import subprocess
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

PATIENCE = 60
"""Timeout for SLURM's commands, in seconds (our choice)."""

ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT")
)  # fmt: skip
"""States of jobs that have ended. Jobs that SLURM requeues itself are PENDING."""


class Listed(NamedTuple):
    """A job as SLURM lists it."""

    job: str
    state: str
    nodes: str = ""
    since: str = ""
    """Start time or expected start time, in the cluster's time zone."""
    reason: str = ""

    @property
    def active(self) -> bool:
        """Whether it is running or waiting."""
        return self.state not in ENDED


def this_job() -> str:
    """Return the job that this process is a part of, ``12`` or ``12_0``; empty outside jobs."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def listed(jobs: Collection[str]) -> dict[str, Listed]:
    """Return those of the ``jobs`` that SLURM knows; without accounting it forgets ended jobs after some minutes.

    Empty if there are no jobs or there is no SLURM.
    """
    if not jobs:
        return {}
    numbers = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
    told = _answer(["squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", "--format=%i|%T|%N|%S|%r"])
    found = {row[0]: Listed(*row) for line in told if len(row := line.split("|")) == 5}
    if missing := set(jobs) - set(found):
        told = _answer(
            [
                "sacct",
                "--noheader",
                "--allocations",
                "--parsable2",
                f"--jobs={numbers}",
                "--format=JobID,State,NodeList,Start",
            ]
        )
        rows = [line.split("|") for line in told]
        found |= {
            row[0]: Listed(row[0], row[1].split()[0], *row[2:]) for row in rows if len(row) == 4 and row[0] in missing
        }
    return {job: found[job] for job in jobs if job in found}


def is_active(job: str) -> bool:
    """Return whether a job is running or waiting."""
    found = listed([job]).get(job)
    return found is not None and found.active


def requeue(job: str) -> str:
    """Requeue a running job, which ends it now; return why that is not possible, or the empty string.

    Cancelled jobs, and jobs that SLURM ends and requeues itself, are not requeued.
    """
    found = listed([job]).get(job)
    if found is None or found.state != "RUNNING":
        return f"its state in SLURM is {found.state.lower() if found else 'unknown'}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.CalledProcessError as error:
        return str(error.stderr or error).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def _answer(command: Sequence[str]) -> Iterable[str]:
    """Return the lines that a SLURM command prints; empty if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
