"""Which runs were submitted to a cluster, as which jobs, and how these ended: small files below ``--runs``, beside the jobs' logs.

::

    runs/jobs/SUITE/runs/RUN/KEY.json   the last job of a run; KEY is a hash of its settings
    runs/jobs/SUITE/logs/               written by submitit: sbatch scripts and the output of jobs
    runs/jobs/SUITE/ends/JOB.json       how a job last ended, written by the job itself

Nothing here needs torch or a cluster.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from lutbench.files import below, content_sha256, read_model, write_json
from lutbench.recipes.suite import LoadedSuite, PlannedRun

TAIL = 8
"""Number of lines shown from the log of a failed job."""


class Submitted(BaseModel):
    """A run that was submitted to the cluster."""

    run: str
    key: str
    """See :func:`key_of`."""
    job: str
    """``12``, or ``12_0`` in an array."""
    after: str = ""
    """The run it depends on."""
    when: str = ""
    out: str = ""
    err: str = ""
    """Paths of its standard output and standard error."""


class JobEnd(BaseModel):
    """How a job ended, and whether it was requeued."""

    job: str
    status: int
    """Exit status of the run, see docs/cluster.md."""
    signal: str = ""
    """The signal that asked it to stop, if any."""
    node: str = ""
    when: str = ""
    requeued: bool = False
    """Whether the job requeued itself."""


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def job_folder(runs: Path, suite: str) -> Path:
    """Return the folder of the files about a suite's jobs."""
    return below(runs, "jobs", suite)


def key_of(suite: LoadedSuite, planned: PlannedRun) -> str:
    """Return a hash of a run's settings and dependencies, which can be computed before its data and weights exist."""
    needs = key_of(suite, suite.run(planned.needs)) if planned.needs else ""
    kind, recipe = planned.kind.name, planned.recipe
    values = {"kind": kind, "revision": recipe.revision, "run": planned.name, "recipe": recipe.affecting_results()}
    return content_sha256({**values, "needs": needs})[:12]


def write_submitted(folder: Path, submitted: Submitted) -> None:
    """Save the job of a run."""
    write_json(_path(folder, submitted.run, submitted.key), submitted.model_dump())


def read_submitted(folder: Path, suite: LoadedSuite, runs: Iterable[PlannedRun]) -> dict[str, Submitted]:
    """Return, by name, those of the ``runs`` that were submitted with their current settings."""
    if not (folder / "runs").is_dir():
        return {}
    found = {run.name: read_model(_path(folder, run.name, key_of(suite, run)), Submitted) for run in runs}
    return {name: submitted for name, submitted in found.items() if submitted is not None}


def write_end(folder: Path, end: JobEnd) -> None:
    """Save how a job ended."""
    write_json(_end_path(folder, end.job), end.model_dump())


def read_end(folder: Path, job: str) -> JobEnd | None:
    """Return how a job last ended; None if it has not ended, or was killed before it could save that."""
    return read_model(_end_path(folder, job), JobEnd)


def last_lines(*files: str) -> list[str]:
    """Return the last lines of the first file that has lines other than submitit's own; also for very long files."""
    for file in files:
        try:
            with Path(file).open("rb") as log:
                log.seek(max(0, Path(file).stat().st_size - 16384))
                lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
        except OSError:
            continue
        if told := [line.rstrip() for line in lines if line.strip() and not line.startswith(("submitit ", "srun: "))]:
            return told[-TAIL:]
    return []


def _path(folder: Path, run: str, key: str) -> Path:
    return below(folder, "runs", run, f"{key}.json")


def _end_path(folder: Path, job: str) -> Path:
    return below(folder, "ends", f"{job}.json")
