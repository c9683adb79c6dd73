"""What ``lutbench status`` shows for runs that were submitted to a cluster."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from lutbench.cluster.slurm import Listed, listed
from lutbench.cluster.submissions import JobEnd, Submitted, job_folder, last_lines, read_end, read_submitted
from lutbench.recipes.suite import LoadedSuite

TIME_LIMIT = "SIGUSR2"
"""The signal that SLURM sends before a job's time limit, requested by submitit."""


class JobState(NamedTuple):
    """The state of the job of a run."""

    text: str
    """``queued, job 12``, shown instead of the status from the run's folder."""
    paragraph: str = ""
    """For a failed job: where and when it failed, and the end of its log."""


def job_states(suite: LoadedSuite, runs: Path) -> dict[str, JobState]:
    """Return, by name, the states of the runs of a suite that were submitted to a cluster; asks SLURM only if there are any."""
    folder = job_folder(runs, suite.name)
    submitted = read_submitted(folder, suite, suite.runs)
    known = listed({one.job for one in submitted.values()})
    states: dict[str, JobState] = {}
    for name, one in submitted.items():  # in the suite's order: what a run needs stands before it
        end = read_end(folder, one.job)
        states[name] = _state(one, known.get(one.job), end, states)
    return states


def _state(one: Submitted, found: Listed | None, end: JobEnd | None, before: Mapping[str, JobState]) -> JobState:
    if found is not None and found.active:
        if found.state in ("PENDING", "REQUEUED"):
            return JobState(_queued(one, end))
        if found.state == "RUNNING":
            return JobState(f"running on {found.nodes} since {_time(found.since)}, job {one.job}")
        return JobState(f"{found.state.lower()}, job {one.job}")
    if end is None and found is None:
        if one.after in before and before[one.after].text.startswith(("failed", "cancelled")):
            return JobState(f"cancelled, because {one.after} failed, job {one.job}")
        return JobState(f"unknown: SLURM no longer lists job {one.job}")
    if end is not None and end.signal:
        return JobState(f"stopped by {end.signal} at {_time(end.when)}, job {one.job}")
    if end is None and found is not None:
        if found.state == "COMPLETED":
            return JobState(f"ended, job {one.job}")
        if found.state == "CANCELLED":
            because = f", because {one.after} failed" if "Dependency" in found.reason else ""
            return JobState(f"cancelled{because}, job {one.job}")
    return _failed(one, found, end)


def _queued(one: Submitted, end: JobEnd | None) -> str:
    """Return why a job is waiting: for the first time, or again after a signal asked it to stop."""
    if end is not None:
        how = {"": "ended", TIME_LIMIT: "out of time"}.get(end.signal, f"preempted by {end.signal}")
        return f"{how} at {_time(end.when)}, requeued, job {one.job}"
    return f"queued, job {one.job}"


def _failed(one: Submitted, found: Listed | None, end: JobEnd | None) -> JobState:
    state = found.state.lower().replace("_", " ") if found is not None else "failed"
    status = f", exit status {end.status}" if end is not None else ""
    where = f" on {found.nodes}" if found is not None and found.nodes else ""
    if end is not None:
        where = f" on {end.node} at {_time(end.when)}"
    lines = last_lines(one.err, one.out)
    log = f" The end of {one.err}:\n" + "\n".join(f"    {line}" for line in lines) if lines else f" {one.err} is empty."
    return JobState(f"{state}{status}, job {one.job}", f"{one.run}: job {one.job} failed{where}{status}.{log}")


def _time(text: str) -> str:
    """Return a time in this machine's time zone, to the second; SLURM's times are in the cluster's already."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when.astimezone() if when.tzinfo else when:%Y-%m-%d %H:%M:%S}"
